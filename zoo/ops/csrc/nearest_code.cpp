// Nearest code of each row, exact, without a table of rows x codes. Plain C interface, called through ctypes.
//
// Pass 1, float32: scores x.c * scale + bias, ROWS rows against PANELS * LANES packed codes at a time in registers. Code k
// lies in lane k % LANES; consecutive codes form groups, and each lane of each row keeps its best score, the group that
// has it, and the best score of its other groups.
// Pass 2, float64: only codes whose float32 score lies within the rounding error of the best are computed again: the
// codes of the best group of a lane, or all codes of the lane where another of its groups is as close.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 8;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
constexpr int PANELS = 3, WIDTH = PANELS * LANES;  // codes of one sweep

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef float HalfFloats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));

constexpr int64_t PACKED_BYTES = 3 << 17;  // of the packed codes, which should stay in the second-level cache
constexpr int64_t BLOCK_ROWS = 1024;       // rows that share one packing of the codes

enum Metric { EUCLIDEAN = 0, COSINE = 1, DOT = 2 };

struct Codebook {
    const float* codes;   // (count, dim)
    const double* scale;  // (count,)
    const double* bias;   // (count,), -infinity for a code that is never chosen
    const double* norms;  // of the scaled codes: the largest and the least
    int64_t count, dim;
    bool euclidean;
};

struct State {  // of one row, by lanes
    Floats best, second;
    Integers group;
};

static inline Floats splat(float value) { return value - Floats{}; }

// the larger; `other` where `score` is not a number
static inline Floats larger(Floats score, Floats other) { return score > other ? score : other; }

static double dot(const float* a, const float* b, int64_t dim) {
    Doubles sums = {};
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
        HalfFloats first, second;
        memcpy(&first, a + d, sizeof first);
        memcpy(&second, b + d, sizeof second);
        sums += __builtin_convertvector(first, Doubles) * __builtin_convertvector(second, Doubles);
    }
    double sum = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
    for (; d < dim; d++) sum += double(a[d]) * double(b[d]);
    return sum;
}

// Codes [start, start + sweeps * WIDTH) as panels (sweep, dim, WIDTH) with float32 biases; zeros and -infinity past the end.
static void pack(const Codebook& book, int64_t start, int64_t sweeps, float* packed, float* bias) {
    for (int64_t column = 0; column < sweeps * WIDTH; column++) {
        const int64_t k = start + column;
        float* target = packed + column / WIDTH * book.dim * WIDTH + column % WIDTH;
        const bool used = k < book.count && book.bias[k] != -INFINITY;
        bias[column] = used ? float(book.bias[k]) : -INFINITY;
        const float scale = used ? float(book.scale[k]) : 0;
        const float* code = book.codes + k * book.dim;
        if (used)
            for (int64_t d = 0; d < book.dim; d++) target[d * WIDTH] = code[d] * scale;
        else
            for (int64_t d = 0; d < book.dim; d++) target[d * WIDTH] = 0;
    }
}

// The largest score of each row and lane over `sweeps` sweeps of packed codes.
static inline void sweep(const float* const* rows, const float* packed, const float* bias, int64_t sweeps, int64_t dim,
                         Floats* best) {
    for (int r = 0; r < ROWS; r++) best[r] = splat(-INFINITY);
    const Floats* codes = reinterpret_cast<const Floats*>(packed);
    for (int64_t s = 0; s < sweeps; s++) {
        Floats sum[ROWS][PANELS];
        for (int p = 0; p < PANELS; p++) {
            const Floats start = reinterpret_cast<const Floats*>(bias)[s * PANELS + p];
            for (int r = 0; r < ROWS; r++) sum[r][p] = start;
        }
        for (int64_t d = 0; d < dim; d++, codes += PANELS)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                const Floats value = splat(rows[r][d]);
#pragma GCC unroll 3
                for (int p = 0; p < PANELS; p++) sum[r][p] += value * codes[p];
            }
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < PANELS; p++) best[r] = larger(sum[r][p], best[r]);
    }
}

// Index of the best code of one row after pass 1: the lowest among the largest float64 scores.
static int64_t decide(const Codebook& book, const float* row, const State& state, int64_t sweeps) {
    const double squared = dot(row, row, book.dim);
    if (!(squared < INFINITY)) return 0;
    const double norm = std::sqrt(squared);
    double reach = book.norms[0], magnitude = norm * reach;
    if (book.euclidean) {
        // a code farther out than this is farther away than the code of least norm
        reach = std::fmin(reach, 4 * norm + 2 * book.norms[1]);
        magnitude = norm * reach + reach * reach / 2;
    }
    // twice the bound of rounding of dim products, their sum, bias and scale, and of underflow
    const double margin = 2.1 * (book.dim + 4) * (magnitude * 0x1p-24 + 0x1p-126);
    const bool overflow = !(magnitude < 1e37);
    float best = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) best = state.best[lane] > best ? state.best[lane] : best;
    const double threshold = overflow ? -INFINITY : best - margin;

    double highest = -INFINITY;
    int64_t index = 0;
    for (int lane = 0; lane < LANES; lane++) {
        if (!(state.best[lane] >= threshold) && !overflow) continue;
        const bool all = overflow || state.second[lane] >= threshold;
        const int64_t group = sweeps * WIDTH;
        int64_t k = lane + (all ? 0 : state.group[lane] * group);
        const int64_t end = all ? book.count : (state.group[lane] + 1) * group;
        for (; k < end && k < book.count; k += LANES) {
            if (book.bias[k] == -INFINITY) continue;
            const double score = dot(row, book.codes + k * book.dim, book.dim) * book.scale[k] + book.bias[k];
            if (score > highest || (score == highest && k < index)) highest = score, index = k;
        }
    }
    return index;
}

struct Workspace {
    float *packed, *bias;
    State* states;
    const float** rows;

    Workspace(int64_t sweeps, int64_t dim) {
        packed = static_cast<float*>(aligned_alloc(64, sweeps * WIDTH * dim * sizeof(float)));
        bias = static_cast<float*>(aligned_alloc(64, sweeps * WIDTH * sizeof(float)));
        states = static_cast<State*>(aligned_alloc(64, BLOCK_ROWS * sizeof(State)));
        rows = static_cast<const float**>(malloc(BLOCK_ROWS * sizeof(float*)));
    }
    ~Workspace() { free(packed), free(bias), free(states), free(rows); }
    bool complete() const { return packed && bias && states && rows; }
};

// Sweeps that make a group: several for short vectors, so that keeping the best costs little beside the products.
static int64_t sweeps_of_group(int64_t dim) { return dim < 16 ? 4 : 1; }

static int64_t sweeps_of_block(const Codebook& book) {
    const int64_t group = sweeps_of_group(book.dim), bytes = group * WIDTH * sizeof(float) * book.dim;
    const int64_t groups = (book.count + group * WIDTH - 1) / (group * WIDTH);
    const int64_t fitting = PACKED_BYTES / bytes;
    return group * (fitting < 1 ? 1 : fitting < groups ? fitting : groups);
}

// Indices of at most BLOCK_ROWS rows, whose addresses lie in work.rows.
static void nearest_of_block(const Codebook& book, Workspace& work, int64_t count, int64_t* indices, int64_t stride) {
    const int64_t group_sweeps = sweeps_of_group(book.dim), block_sweeps = sweeps_of_block(book);
    const int64_t sweeps = (book.count + WIDTH - 1) / WIDTH;
    const int64_t padded = (count + ROWS - 1) / ROWS * ROWS;
    for (int64_t r = count; r < padded; r++) work.rows[r] = work.rows[count - 1];
    for (int64_t r = 0; r < padded; r++) work.states[r] = {splat(-INFINITY), splat(-INFINITY), Integers{}};
    for (int64_t start = 0; start < sweeps; start += block_sweeps) {
        const int64_t end = start + block_sweeps < sweeps ? start + block_sweeps : sweeps;
        pack(book, start * WIDTH, end - start, work.packed, work.bias);
        for (int64_t row = 0; row < padded; row += ROWS)
            for (int64_t s = start; s < end; s += group_sweeps) {
                Floats best[ROWS];
                const int64_t some = end - s < group_sweeps ? end - s : group_sweeps;
                sweep(work.rows + row, work.packed + (s - start) * WIDTH * book.dim, work.bias + (s - start) * WIDTH, some,
                      book.dim, best);
                const Integers group = Integers{} + int32_t(s / group_sweeps);
                for (int r = 0; r < ROWS; r++) {
                    State& state = work.states[row + r];
                    const Floats lesser = best[r] > state.best ? state.best : best[r];
                    state.second = larger(lesser, state.second);
                    state.group = best[r] > state.best ? group : state.group;
                    state.best = larger(best[r], state.best);
                }
            }
    }
    for (int64_t r = 0; r < count; r++) indices[r * stride] = decide(book, work.rows[r], work.states[r], group_sweeps);
}

extern "C" {

// Scale and bias (count,) of each code's score, and the largest and least norm of a scaled code.
void zoo_prepare(const float* codes, int64_t count, int64_t dim, int32_t metric, double* scale, double* bias, double* norms) {
    norms[0] = 0, norms[1] = INFINITY;
    for (int64_t k = 0; k < count; k++) {
        const double squared = dot(codes + k * dim, codes + k * dim, dim), norm = std::sqrt(squared);
        const bool finite = squared < INFINITY;
        scale[k] = metric != COSINE ? 1 : norm > 0 ? 1 / norm : 0;
        bias[k] = !finite ? -INFINITY : metric == EUCLIDEAN ? -squared / 2 : 0;
        if (finite) norms[0] = std::fmax(norms[0], norm * scale[k]), norms[1] = std::fmin(norms[1], norm * scale[k]);
    }
}

// Nearest code of each row; codes are (count, dim) without gaps. Returns 0, or 1 where memory ran out.
int32_t zoo_nearest(const float* x, int64_t rows, int64_t row_stride, const float* codes, int64_t count, int64_t dim,
                    int32_t metric, const double* scale, const double* bias, const double* norms, int64_t* indices) {
    const Codebook book = {codes, scale, bias, norms, count, dim, metric == EUCLIDEAN};
    Workspace work(sweeps_of_block(book), dim);
    if (!work.complete()) return 1;
    for (int64_t start = 0; start < rows; start += BLOCK_ROWS) {
        const int64_t some = rows - start < BLOCK_ROWS ? rows - start : BLOCK_ROWS;
        for (int64_t r = 0; r < some; r++) work.rows[r] = x + (start + r) * row_stride;
        nearest_of_block(book, work, some, indices + start, 1);
    }
    return 0;
}

// Indices (rows, levels) of Euclidean residual quantisation; each level takes what the levels before it left over.
int32_t zoo_residual(const float* x, int64_t rows, int64_t row_stride, const float* codebooks, int64_t level_stride,
                     int64_t levels, int64_t count, int64_t dim, const double* scale, const double* bias,
                     const double* norms, int64_t* indices) {
    const Codebook first = {codebooks, scale, bias, norms, count, dim, true};
    Workspace work(sweeps_of_block(first), dim);
    float* residual = static_cast<float*>(malloc(BLOCK_ROWS * dim * sizeof(float)));
    const bool complete = work.complete() && residual;
    for (int64_t start = 0; complete && start < rows; start += BLOCK_ROWS) {
        const int64_t some = rows - start < BLOCK_ROWS ? rows - start : BLOCK_ROWS;
        int64_t* found = indices + start * levels;
        for (int64_t r = 0; r < some; r++) {
            memcpy(residual + r * dim, x + (start + r) * row_stride, dim * sizeof(float));
            work.rows[r] = residual + r * dim;
        }
        for (int64_t q = 0; q < levels; q++) {
            const float* codes = codebooks + q * level_stride;
            const Codebook book = {codes, scale + q * count, bias + q * count, norms + q * 2, count, dim, true};
            nearest_of_block(book, work, some, found + q, levels);
            for (int64_t r = 0; r < some; r++)
                for (int64_t d = 0; d < dim; d++) residual[r * dim + d] -= codes[found[r * levels + q] * dim + d];
        }
    }
    free(residual);
    return complete ? 0 : 1;
}
}
