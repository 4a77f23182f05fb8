// A codebook, and the choice in float64 between those of its codes that a search could not tell apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)  // 32 registers of 16 lanes
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX__)  // 16 of 8
constexpr int LANES = 8, ROWS = 4;
#elif defined(__aarch64__)  // 32 of 4
constexpr int LANES = 4, ROWS = 8;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
constexpr int PANELS = 3, WIDTH = PANELS * LANES;  // codes that ROWS vectors are multiplied with at a time

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef float FloatsInMemory __attribute__((vector_size(LANES * 4), may_alias));  // of an array of float
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef double Doubles __attribute__((vector_size(LANES * 4)));

static inline Floats splat(float value) { return value - Floats{}; }

// The larger; `other` where `score` is not a number.
static inline Floats larger(Floats score, Floats other) { return score > other ? score : other; }

// The same, in a register: with few of them GCC reads a value anew for each product, which takes longer than these.
static inline Floats held(Floats value) {
#if defined(__AVX__) && !defined(__AVX512F__)
    asm("" : "+x"(value));
#endif
    return value;
}

static inline float highest_lane(Floats lanes) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(__m512(lanes));
#endif
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] = std::max(lanes[lane], lanes[lane + half]);
    return lanes[0];
}

enum Metric { EUCLIDEAN = 0, COSINE = 1, DOT = 2 };

constexpr int HALF = LANES / 2;  // numbers of float64 in a register

static inline Doubles as_doubles(const double* values) {
    Doubles result;
    memcpy(&result, values, sizeof result);
    return result;
}

static inline Doubles as_doubles(const float* values) {
#if defined(__AVX512F__)
    return Doubles(_mm512_cvtps_pd(_mm256_loadu_ps(values)));  // which compilers do not make of the lines below
#elif defined(__AVX__)
    return Doubles(_mm256_cvtps_pd(_mm_loadu_ps(values)));
#else
    typedef float Halves __attribute__((vector_size(HALF * 4)));
    Halves result;
    memcpy(&result, values, sizeof result);
    return __builtin_convertvector(result, Doubles);
#endif
}

template <typename T> static double dot(const T* a, const T* b, int64_t dim) {
    constexpr int chains = 4;  // sums that do not wait for one another
    Doubles sums[chains] = {};
    int64_t d = 0;
    for (; d + HALF * chains <= dim; d += HALF * chains)
        for (int c = 0; c < chains; c++) sums[c] += as_doubles(a + d + HALF * c) * as_doubles(b + d + HALF * c);
    for (; d + HALF <= dim; d += HALF) sums[0] += as_doubles(a + d) * as_doubles(b + d);
    const Doubles all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = 0;
    for (int lane = 0; lane < HALF; lane++) sum += all[lane];
    for (; d < dim; d++) sum += double(a[d]) * double(b[d]);
    return sum;
}

struct Code {  // score of a code: x.c * scale + bias
    double scale, bias, length;  // bias -infinity: never chosen; length of the scaled code
};

template <typename T> struct Codebook {
    const T* values;  // (count, dim)
    int64_t count, dim;
    Metric metric;
    std::vector<Code> codes;
    double longest = 0, shortest = INFINITY;

    Codebook(const void* values, int64_t count, int64_t dim, Metric metric)
        : values(static_cast<const T*>(values)), count(count), dim(dim), metric(metric), codes(count) {}

    const T* code(int64_t k) const { return values + k * dim; }
    bool usable(int64_t k) const { return codes[k].bias != -INFINITY; }
    double score(const T* vector, int64_t k) const {
        return dot(vector, code(k), dim) * codes[k].scale + codes[k].bias;
    }
    double squared_distance(const T* vector, int64_t k) const {
        double sum = 0;
        for (int64_t d = 0; d < dim; d++) {
            const double difference = double(vector[d]) - double(code(k)[d]);
            sum += difference * difference;
        }
        return sum;
    }

    void measure(int64_t first, int64_t end) {  // fills `codes`, all of which `bound` needs
        for (int64_t k = first; k < end; k++) {
            const double squared = dot(code(k), code(k), dim), norm = std::sqrt(squared);
            const double scale = metric != COSINE ? 1 : norm > 0 ? 1 / norm : 0;
            const double bias = !(squared < INFINITY) ? -INFINITY : metric == EUCLIDEAN ? -squared / 2 : 0;
            codes[k] = {scale, bias, norm * scale};
        }
    }
    void bound() {
        for (int64_t k = 0; k < count; k++)
            if (usable(k)) {
                longest = std::fmax(longest, codes[k].length);
                shortest = std::fmin(shortest, codes[k].length);
            }
    }
};

struct Extent {  // of a vector beside a codebook
    double norm, reach, magnitude;  // its length; that of the longest code that can be nearest; of scores of such codes

    template <typename T> Extent(const Codebook<T>& book, const T* vector) {
        norm = std::sqrt(dot(vector, vector, book.dim)), reach = book.longest, magnitude = norm * reach;
        if (book.metric == EUCLIDEAN) {  // a code beyond the reach is farther away than the shortest one
            reach = std::fmin(reach, 4 * norm + 2 * book.shortest);
            magnitude = norm * reach + reach * reach / 2;
        }
    }

    bool finite() const { return norm < INFINITY; }
    bool fits_float() const { return magnitude < 1e37; }  // nothing overflows in float32

    // The least float32 score of a code that can be the nearest where `best` is the highest: less by twice the bound of
    // the rounding of the scores and of what they are made from, and of underflow.
    float threshold(float best, int64_t dim) const {
        const double margin = 2.1 * (dim + 6) * (magnitude * 0x1p-24 + (1 + norm + reach) * 0x1p-126);
        const double lowest = best - margin;
        return float(lowest - std::fabs(lowest) * 0x1p-23);
    }
};

// Index of the nearest code of one vector: the lowest of those that float64 cannot tell from the best.
// each(visit) calls visit(k) for some codes k, among them all that float64 cannot tell from the best.
template <typename T, typename Each>
static int64_t decide(const Codebook<T>& book, const T* vector, const Extent& extent, const Each& each) {
    if (!extent.finite()) return 0;
    const auto scored = [&](const auto& visit) {
        each([&](int64_t k) {
            if (k < book.count && book.usable(k))
                visit(k, extent.norm > 0 ? book.score(vector, k) : book.codes[k].bias);
        });
    };
    int64_t index = 0;
    double best = -INFINITY, second = -INFINITY;
    scored([&](int64_t k, double score) {
        second = std::fmax(second, std::fmin(score, best));
        if (score > best) best = score, index = k;
    });
    const double rounding = 4 * std::sqrt(double(book.dim)) * 0x1p-52;
    if (best - second > 2 * rounding * extent.magnitude) return index;

    // float64 scores cannot tell either: of those that may be the largest, float64 distances decide, which are precise
    // where they are small; of what remains, the lowest index
    const auto slack = [&](int64_t k) { return rounding * (extent.norm * book.codes[k].length - book.codes[k].bias); };
    double least = -INFINITY;  // that the best score can be
    scored([&](int64_t k, double score) { least = std::fmax(least, score - slack(k)); });
    const bool euclidean = book.metric == EUCLIDEAN;
    double nearest = INFINITY;
    if (euclidean)
        scored([&](int64_t k, double score) {
            if (score + slack(k) >= least) nearest = std::fmin(nearest, book.squared_distance(vector, k));
        });
    index = book.count;
    scored([&](int64_t k, double score) {
        if (k < index && score + slack(k) >= least &&
            (!euclidean || book.squared_distance(vector, k) * (1 - rounding) <= nearest * (1 + rounding)))
            index = k;
    });
    return index < book.count ? index : 0;  // where no code is finite
}
