// Nearest code of each vector, and of what each level of a residual quantizer leaves over: a plain C function, which
// nearest_code_compiled.py calls through ctypes. What the result is, the docstring of nearest_code says.
//
// Pass 1, float32: scores x.c + bias of ROWS vectors against PANELS * LANES packed codes at a time, in registers. Code
// k lies in lane k % LANES. A few consecutive sweeps form a group; each lane of each vector keeps its best score, the
// group that has it, and the best score of its other groups.
// Pass 2, float64: only codes whose float32 score lies within the rounding error of the best are scored again: those of
// the best group of a lane, or all of the lane where another of its groups comes as close.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#if defined(__AVX512F__)  // 32 registers of 16 lanes
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX__)  // 16 of 8
constexpr int LANES = 8, ROWS = 4;
#elif defined(__aarch64__)  // 32 of 4
constexpr int LANES = 4, ROWS = 8;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
constexpr int PANELS = 3, WIDTH = PANELS * LANES;  // codes of one sweep

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef float FloatsInMemory __attribute__((vector_size(LANES * 4), may_alias));  // of an array of float
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef double Doubles __attribute__((vector_size(64)));
template <typename T> struct EightOf;
template <> struct EightOf<float> { typedef float type __attribute__((vector_size(32))); };
template <> struct EightOf<double> { typedef Doubles type; };

constexpr int64_t PACKED_FLOATS = 3 << 15;  // of the packed codes, which should stay in the second-level cache
constexpr int64_t BLOCK_FLOATS = 1 << 18;   // of the vectors that share one packing of the codes
constexpr int64_t BLOCK_ROWS = 2048;
constexpr int64_t FEW_ROWS = 3;  // for so few vectors packing the codes costs more than it brings

enum Metric { EUCLIDEAN = 0, COSINE = 1, DOT = 2 };

template <typename T> static double dot(const T* a, const T* b, int64_t dim) {
    Doubles sums = {};
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
        typename EightOf<T>::type first, second;
        memcpy(&first, a + d, sizeof first);
        memcpy(&second, b + d, sizeof second);
        sums += __builtin_convertvector(first, Doubles) * __builtin_convertvector(second, Doubles);
    }
    double sum = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
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

    bool usable(int64_t k) const { return codes[k].bias != -INFINITY; }
    double score(const T* vector, int64_t k) const {
        return dot(vector, values + k * dim, dim) * codes[k].scale + codes[k].bias;
    }
    double squared_distance(const T* vector, int64_t k) const {
        double sum = 0;
        for (int64_t d = 0; d < dim; d++) {
            const double difference = double(vector[d]) - double(values[k * dim + d]);
            sum += difference * difference;
        }
        return sum;
    }
};

struct State {  // of one vector, by lanes
    Floats best, second;
    Integers group;
};

static inline float highest_lane(Floats lanes) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] = std::max(lanes[lane], lanes[lane + half]);
    return lanes[0];
}

static inline Floats splat(float value) { return value - Floats{}; }

// The larger; `other` where `score` is not a number.
static inline Floats larger(Floats score, Floats other) { return score > other ? score : other; }

// Calls work(block) for each block, on up to `threads` threads; false where memory ran out.
template <typename Work> static bool parallel(int64_t threads, int64_t blocks, const Work& work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> complete{true};
    const auto run = [&] {
        try {
            for (int64_t block; (block = next++) < blocks && complete;) work(block);
        } catch (const std::bad_alloc&) {
            complete = false;
        }
    };
    std::vector<std::thread> others;
    try {
        others.reserve(threads);
        for (int64_t t = 1; t < threads && t < blocks; t++) others.emplace_back(run);
    } catch (const std::exception&) {  // the system gives no more threads: those there are do all
    }
    run();
    for (std::thread& other : others) other.join();
    return complete;
}

template <typename T> static bool prepare(Codebook<T>& book, int64_t threads) {
    constexpr int64_t block_codes = 1024;
    const bool complete = parallel(threads, (book.count + block_codes - 1) / block_codes, [&](int64_t block) {
        for (int64_t k = block * block_codes; k < book.count && k < (block + 1) * block_codes; k++) {
            const T* code = book.values + k * book.dim;
            const double squared = dot(code, code, book.dim), norm = std::sqrt(squared);
            const double scale = book.metric != COSINE ? 1 : norm > 0 ? 1 / norm : 0;
            const double bias = !(squared < INFINITY) ? -INFINITY : book.metric == EUCLIDEAN ? -squared / 2 : 0;
            book.codes[k] = {scale, bias, norm * scale};
        }
    });
    for (int64_t k = 0; k < book.count; k++)
        if (book.usable(k)) {
            book.longest = std::fmax(book.longest, book.codes[k].length);
            book.shortest = std::fmin(book.shortest, book.codes[k].length);
        }
    return complete;
}

// Codes of `sweeps` sweeps as (sweep, dim, WIDTH) in float32, and their biases; zeros and -infinity past the end.
template <typename T>
static void pack(const Codebook<T>& book, int64_t first_sweep, int64_t sweeps, float* packed, float* bias) {
    constexpr int64_t strip = 64;  // of dimensions, so that what is written stays in the first-level cache
    for (int64_t s = 0; s < sweeps; s++, packed += book.dim * WIDTH, bias += WIDTH)
        for (int64_t from = 0; from < book.dim; from += strip) {
            const int64_t to = from + strip < book.dim ? from + strip : book.dim;
            for (int lane = 0; lane < WIDTH; lane++) {
                const int64_t k = (first_sweep + s) * WIDTH + lane;
                const bool used = k < book.count && book.usable(k);
                bias[lane] = used ? float(book.codes[k].bias) : -INFINITY;
                const double scale = used ? book.codes[k].scale : 0;
                const T* code = book.values + (used ? k : 0) * book.dim;
                for (int64_t d = from; d < to; d++) packed[d * WIDTH + lane] = used ? float(code[d] * scale) : 0;
            }
        }
}

// The largest score by lanes of each of ROWS vectors (dim, ROWS), over `sweeps` sweeps of packed codes.
static inline void sweep(const float* vectors, const float* packed, const float* bias, int64_t sweeps, int64_t dim,
                         Floats* best) {
    for (int r = 0; r < ROWS; r++) best[r] = splat(-INFINITY);
    const FloatsInMemory* codes = reinterpret_cast<const FloatsInMemory*>(packed);
    for (int64_t s = 0; s < sweeps; s++) {
        Floats sum[ROWS][PANELS];
        for (int p = 0; p < PANELS; p++) {
            const Floats start = reinterpret_cast<const FloatsInMemory*>(bias)[s * PANELS + p];
            for (int r = 0; r < ROWS; r++) sum[r][p] = start;
        }
        for (int64_t d = 0; d < dim; d++, codes += PANELS)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                const Floats value = splat(vectors[d * ROWS + r]);
#pragma GCC unroll 3
                for (int p = 0; p < PANELS; p++) sum[r][p] += value * codes[p];
            }
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < PANELS; p++) best[r] = larger(sum[r][p], best[r]);
    }
}

// Index of the nearest code of one vector: the lowest of those that float64 cannot tell from the best. `state` is what
// pass 1 found with groups of `group_codes` codes, or null where every code is to be scored.
template <typename T>
static int64_t decide(const Codebook<T>& book, const T* vector, const State* state, int64_t group_codes) {
    const double squared = dot(vector, vector, book.dim), norm = std::sqrt(squared);
    if (!(squared < INFINITY)) return 0;
    double reach = book.longest, magnitude = norm * reach;
    if (book.metric == EUCLIDEAN) {
        reach = std::fmin(reach, 4 * norm + 2 * book.shortest);  // a longer code is farther away than the shortest one
        magnitude = norm * reach + reach * reach / 2;
    }
    // twice the bound of the rounding of the scores and of what they are made from, and of underflow
    const double margin = 2.1 * (book.dim + 6) * (magnitude * 0x1p-24 + (1 + norm + reach) * 0x1p-126);
    const bool exhaustive = !state || !(magnitude < 1e37);  // float32 may overflow
    float threshold = 0;
    if (!exhaustive) {
        const double lowest = highest_lane(state->best) - margin;
        threshold = float(lowest - std::fabs(lowest) * 0x1p-23);
    }
    const auto each = [&](const auto& visit) {  // the codes in question, with their scores
        for (int lane = 0; lane < LANES; lane++) {
            if (!exhaustive && !(state->best[lane] >= threshold)) continue;
            const bool all = exhaustive || state->second[lane] >= threshold;
            const int64_t group = all ? 0 : state->group[lane], end = all ? book.count : (group + 1) * group_codes;
            for (int64_t k = group * group_codes + lane; k < end && k < book.count; k += LANES)
                if (book.usable(k)) visit(k, norm > 0 ? book.score(vector, k) : book.codes[k].bias);
        }
    };
    int64_t index = 0;
    double best = -INFINITY, second = -INFINITY;
    each([&](int64_t k, double score) {
        second = std::fmax(second, std::fmin(score, best));
        if (score > best) best = score, index = k;
    });
    const double rounding = 4 * std::sqrt(double(book.dim)) * 0x1p-52;
    if (best - second > 2 * rounding * magnitude) return index;

    // float64 scores cannot tell either: of those that may be the largest, float64 distances decide, which are precise
    // where they are small; of what remains, the lowest index
    const auto slack = [&](int64_t k) { return rounding * (norm * book.codes[k].length - book.codes[k].bias); };
    double least = -INFINITY;  // that the best score can be
    each([&](int64_t k, double score) { least = std::fmax(least, score - slack(k)); });
    const bool euclidean = book.metric == EUCLIDEAN;
    double nearest = INFINITY;
    if (euclidean)
        each([&](int64_t k, double score) {
            if (score + slack(k) >= least) nearest = std::fmin(nearest, book.squared_distance(vector, k));
        });
    index = book.count;
    each([&](int64_t k, double score) {
        if (k < index && score + slack(k) >= least &&
            (!euclidean || book.squared_distance(vector, k) * (1 - rounding) <= nearest * (1 + rounding)))
            index = k;
    });
    return index < book.count ? index : 0;  // where no code is finite
}

// Indices (rows, levels) of one block of vectors.
template <typename T> struct Block {
    int64_t rows, dim, padded;
    std::vector<Floats> packed, bias;
    std::vector<float> tiles;  // (padded / ROWS, dim, ROWS)
    std::vector<State> states;
    std::vector<const T*> vectors;

    // Sweeps of a group: several for short vectors, so that keeping the best costs little beside the products.
    int64_t group_sweeps() const { return dim < 16 ? 4 : 1; }

    Block(int64_t rows, int64_t dim, int64_t most_codes)
        : rows(rows), dim(dim), padded((rows + ROWS - 1) / ROWS * ROWS) {
        vectors.resize(rows);
        if (rows <= FEW_ROWS) return;
        const int64_t sweeps = std::min(block_sweeps(), (most_codes + WIDTH - 1) / WIDTH);
        packed.resize(sweeps * PANELS * dim);
        bias.resize(sweeps * PANELS);
        tiles.resize(padded * dim);
        states.resize(padded);
    }

    int64_t block_sweeps() const {
        const int64_t fitting = PACKED_FLOATS / (group_sweeps() * WIDTH * dim);
        return group_sweeps() * std::max<int64_t>(fitting, 1);
    }

    void nearest(const Codebook<T>& book, int64_t* indices, int64_t stride) {
        const bool searched = rows > FEW_ROWS;
        if (searched) search(book);
        for (int64_t r = 0; r < rows; r++)
            indices[r * stride] = decide(book, vectors[r], searched ? &states[r] : nullptr, group_sweeps() * WIDTH);
    }

    void search(const Codebook<T>& book) {  // pass 1
        for (int64_t r = 0; r < padded; r++) {
            float* tile = tiles.data() + r / ROWS * dim * ROWS + r % ROWS;
            for (int64_t d = 0; d < dim; d++) tile[d * ROWS] = r < rows ? float(vectors[r][d]) : 0;
            states[r] = {splat(-INFINITY), splat(-INFINITY), Integers{}};
        }
        const int64_t sweeps = (book.count + WIDTH - 1) / WIDTH;
        // std::vector<Floats> for its alignment; what lies there are single floats
        float *codes = reinterpret_cast<float*>(packed.data()), *biases = reinterpret_cast<float*>(bias.data());
        for (int64_t start = 0; start < sweeps; start += block_sweeps()) {
            const int64_t end = std::min(start + block_sweeps(), sweeps);
            pack(book, start, end - start, codes, biases);
            for (int64_t row = 0; row < padded; row += ROWS)
                for (int64_t s = start; s < end; s += group_sweeps()) {
                    Floats best[ROWS];
                    sweep(tiles.data() + row * dim, codes + (s - start) * WIDTH * dim, biases + (s - start) * WIDTH,
                          std::min(group_sweeps(), end - s), dim, best);
                    const Integers group = Integers{} + int32_t(s / group_sweeps());
                    for (int r = 0; r < ROWS; r++) {
                        State& state = states[row + r];
                        const Floats lesser = best[r] > state.best ? state.best : best[r];
                        state.second = larger(lesser, state.second);
                        state.group = best[r] > state.best ? group : state.group;
                        state.best = larger(best[r], state.best);
                    }
                }
        }
    }
};

template <typename T>
static bool residual_codes(const T* x, int64_t rows, int64_t row_stride, int64_t column_stride,
                           const void* const* codebooks, const int64_t* counts, int64_t levels, int64_t dim,
                           Metric metric, int64_t threads, int64_t* indices) {
    std::vector<Codebook<T>> books;
    books.reserve(levels);
    int64_t most_codes = 0;
    for (int64_t q = 0; q < levels; q++) {
        books.emplace_back(codebooks[q], counts[q], dim, metric);
        if (!prepare(books.back(), threads)) return false;
        most_codes = std::max(most_codes, counts[q]);
    }
    const int64_t most_rows = std::max<int64_t>(std::min(BLOCK_ROWS, BLOCK_FLOATS / dim), ROWS);
    const int64_t rounds = (rows + most_rows * threads - 1) / (most_rows * threads);  // all threads end together
    const int64_t share = (rows + rounds * threads - 1) / (rounds * threads);
    const int64_t block_rows = (share + ROWS - 1) / ROWS * ROWS;
    return parallel(threads, (rows + block_rows - 1) / block_rows, [&](int64_t number) {
        const int64_t start = number * block_rows, count = std::min(block_rows, rows - start);
        Block<T> block(count, dim, most_codes);
        const bool copied = levels > 1 || column_stride != 1;
        std::vector<T> residual(copied ? count * dim : 0);
        for (int64_t r = 0; r < count; r++) {
            const T* row = x + (start + r) * row_stride;
            block.vectors[r] = copied ? residual.data() + r * dim : row;
            for (int64_t d = 0; copied && d < dim; d++) residual[r * dim + d] = row[d * column_stride];
        }
        for (int64_t q = 0; q < levels; q++) {
            int64_t* found = indices + start * levels + q;
            block.nearest(books[q], found, levels);
            for (int64_t r = 0; q + 1 < levels && r < count; r++) {
                const T* code = books[q].values + found[r * levels] * dim;
                for (int64_t d = 0; d < dim; d++) residual[r * dim + d] -= code[d];
            }
        }
    });
}

// Indices (rows, levels). Vectors (rows, dim) have any strides, counted in elements; codebooks (counts[q], dim) have no
// gaps; all are float64 or all float32; no size is 0. Returns 0, or 1 where memory ran out.
extern "C" int32_t zoo_residual_codes(const void* x, int64_t rows, int64_t row_stride, int64_t column_stride,
                                      int32_t float64, const void* const* codebooks, const int64_t* counts,
                                      int64_t levels, int64_t dim, int32_t metric, int64_t threads, int64_t* indices) {
    try {
        const auto run = [&](auto* vectors) {
            return residual_codes(vectors, rows, row_stride, column_stride, codebooks, counts, levels, dim,
                                  Metric(metric), threads, indices);
        };
        return (float64 ? run(static_cast<const double*>(x)) : run(static_cast<const float*>(x))) ? 0 : 1;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
