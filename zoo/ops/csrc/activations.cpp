// Snake, ELU, and SiLU after a group norm, of rows of channels, in as few passes over memory as can be: in float32, and
// Snake and ELU also of bfloat16, computed in float32.
//
// Any number of threads may call the same function with the same task: each takes block after block of its rows.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "exponential.h"

namespace {

struct Task {
    const void* x;       // (rows, width), one row after the other
    void* y;             // the same; may be x
    const float* alpha;  // (width): of Snake, or the factors of SiLU's argument, or what moments are taken about
    const float* scale;  // (width): of Snake, or the summands of SiLU's argument
    int64_t rows;
    int64_t width;
    int64_t block;  // rows taken at a time
    int64_t next;   // the first row that nobody has taken
};

// the upper half of a float32
struct Brain {
    uint16_t bits;
};

inline float widened(float x) { return x; }

inline float widened(Brain x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void put(float* y, float value) { *y = value; }

// the nearest, of two equally near ones the even
inline void put(Brain* y, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    y->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

// sin(t)^2, whose period is pi; a polynomial in the square of the rest (Chebyshev fit, |u| <= pi / 2)
inline float sine_squared(float t) {
    const float n = nearest(t * 0.31830988618f);
    float u = multiply_add(n, -3.140625f, t);  // pi in three parts, the first two of few digits
    u = multiply_add(n, -9.67502593994140625e-4f, u);
    u = multiply_add(n, -1.509957990978376432e-7f, u);
    const float v = u * u;
    float p = 8.30463302e-08f;
    p = multiply_add(p, v, -4.24583068e-06f);
    p = multiply_add(p, v, 0.000141055791f);
    p = multiply_add(p, v, -0.00317458149f);
    p = multiply_add(p, v, 0.0444444399f);
    p = multiply_add(p, v, -0.333333333f);
    return multiply_add(p * v, v, v);
}

// calls rows(first, end) until all rows are done
template <typename Rows>
void share(Task* task, Rows rows) {
    for (;;) {
        const int64_t first = __atomic_fetch_add(&task->next, task->block, __ATOMIC_RELAXED);
        if (first >= task->rows) return;
        rows(first, std::min(first + task->block, task->rows));
    }
}

// y = value(x, alpha, scale), each channel with its own alpha and scale
template <typename Number, typename Value>
void of_channels(Task* task, Value value) {
    const float *alpha = task->alpha, *scale = task->scale;
    const int64_t width = task->width;
    share(task, [=](int64_t first, int64_t end) {
        for (int64_t r = first; r < end; ++r) {
            const Number* x = static_cast<const Number*>(task->x) + r * width;
            Number* y = static_cast<Number*>(task->y) + r * width;
            for (int64_t i = 0; i < width; ++i) put(y + i, value(widened(x[i]), alpha[i], scale[i]));
        }
    });
}

// x + scale * sin(alpha x)^2
template <typename Number>
void snake(Task* task) {
    of_channels<Number>(task, [](float x, float alpha, float scale) {
        return multiply_add(scale, sine_squared(alpha * x), x);
    });
}

// x where x > 0, exp(x) - 1 elsewhere
template <typename Number>
void elu(Task* task) {
    share(task, [=](int64_t first, int64_t end) {
        const Number* x = static_cast<const Number*>(task->x);
        Number* y = static_cast<Number*>(task->y);
        for (int64_t i = first * task->width; i < end * task->width; ++i) {
            const float v = widened(x[i]);
            put(y + i, v > 0 ? v : exp_minus_one(v));
        }
    });
}

}  // namespace

extern "C" {

void zoo_snake(Task* task) { snake<float>(task); }
void zoo_snake_bfloat16(Task* task) { snake<Brain>(task); }

void zoo_elu(Task* task) { elu<float>(task); }
void zoo_elu_bfloat16(Task* task) { elu<Brain>(task); }

// of each block of rows the sums of x - alpha and of its square: y is (blocks, 2, width)
void zoo_moments(Task* task) {
    const float* alpha = task->alpha;
    const int64_t width = task->width;
    share(task, [=](int64_t first, int64_t end) {
        float* __restrict sum = static_cast<float*>(task->y) + first / task->block * 2 * width;
        float* __restrict square = sum + width;
        std::fill(sum, sum + 2 * width, 0.0f);
        for (int64_t r = first; r < end; ++r) {
            const float* __restrict x = static_cast<const float*>(task->x) + r * width;
            for (int64_t i = 0; i < width; ++i) {
                const float rest = x[i] - alpha[i];
                sum[i] += rest;
                square[i] = multiply_add(rest, rest, square[i]);
            }
        }
    });
}

// v / (1 + exp(-v)) of v = alpha x + scale
void zoo_scaled_silu(Task* task) {
    of_channels<float>(task, [](float x, float alpha, float scale) {
        const float v = multiply_add(alpha, x, scale);
        return v / (2.0f + exp_minus_one(v < -88.0f ? 88.0f : -v));
    });
}
}
