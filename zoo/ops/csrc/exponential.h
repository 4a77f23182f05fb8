// The exponential function in float32, by operations that compilers make vector instructions of.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

// the nearest whole number, of |x| < 2^22
inline float nearest(float x) {
    const float shift = 12582912.0f;
    return (x + shift) - shift;
}

// exp(x) = power * (1 + rest), of x <= 88: 2^n and exp(u) - 1 with |u| <= log(2) / 2, by its Taylor polynomial
struct Exponential {
    float power;
    float rest;
};

inline Exponential exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float n = nearest(x * 1.44269504089f);
    float u = multiply_add(n, -0.693359375f, x);  // log(2) in two parts
    u = multiply_add(n, 2.12194440e-4f, u);
    float p = 1.0f / 5040;
    p = multiply_add(p, u, 1.0f / 720);
    p = multiply_add(p, u, 1.0f / 120);
    p = multiply_add(p, u, 1.0f / 24);
    p = multiply_add(p, u, 1.0f / 6);
    p = multiply_add(p, u, 0.5f);
    p = multiply_add(p * u, u, u);
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return {power, p};
}

// exp(x) - 1, of x <= 88: 2^n (exp(u) - 1) + (2^n - 1)
inline float exp_minus_one(float x) {
    const Exponential e = exponential(x);
    return multiply_add(e.power, e.rest, e.power - 1.0f);
}

// exp(x), of x <= 88; below -87 as at -87
inline float exp_of(float x) {
    const Exponential e = exponential(x);
    return multiply_add(e.power, e.rest, e.power);
}

}  // namespace
