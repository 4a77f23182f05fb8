// Searches in float32: each finds, for some vectors, the few codes that its rounding cannot tell from the nearest.
#pragma once

#include "codebook.h"

// For vectors enough to fill the processor: scores x.c + bias of ROWS vectors against PANELS * LANES packed codes at a
// time, in registers. Code k lies in lane k % LANES. A few consecutive sweeps form a group; each lane of each vector
// keeps its best score, the group that has it, and the best score of its other groups.
template <typename T> class FloatSearch {
    struct State {  // of one vector, by lanes
        Floats best, second;
        Integers group;
    };
    static constexpr int64_t PACKED_FLOATS = 3 << 15;  // of packed codes, which should stay in the second-level cache

    int64_t dim;
    int64_t group_sweeps;  // several for short vectors, so that keeping the best costs little beside the products
    int64_t block_sweeps;
    std::vector<Floats> packed, bias;  // for their alignment; what lies there are single floats
    std::vector<float> tiles;          // (vectors / ROWS, dim, ROWS)
    std::vector<State> states;

    // Codes of `sweeps` sweeps as (sweep, dim, WIDTH), and their biases; zeros and -infinity past the end.
    void pack(const Codebook<T>& book, int64_t first_sweep, int64_t sweeps, float* codes, float* biases) const {
        constexpr int64_t strip = 64;  // of dimensions, so that what is written stays in the first-level cache
        for (int64_t s = 0; s < sweeps; s++, codes += dim * WIDTH, biases += WIDTH)
            for (int64_t from = 0; from < dim; from += strip) {
                const int64_t to = std::min(from + strip, dim);
                for (int lane = 0; lane < WIDTH; lane++) {
                    const int64_t k = (first_sweep + s) * WIDTH + lane;
                    const bool used = k < book.count && book.usable(k);
                    biases[lane] = used ? float(book.codes[k].bias) : -INFINITY;
                    const T* code = book.code(used ? k : 0);
                    const auto write = [&](const auto& value) {
                        for (int64_t d = from; d < to; d++) codes[d * WIDTH + lane] = value(code[d]);
                    };
                    if (!used)
                        write([](T) { return 0.0f; });
                    else if (book.metric == COSINE)
                        write([scale = book.codes[k].scale](T number) { return float(number * scale); });
                    else
                        write([](T number) { return float(number); });
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
            for (int64_t d = 0; d < dim; d++, codes += PANELS) {
                Floats code[PANELS];
                for (int p = 0; p < PANELS; p++) code[p] = held(codes[p]);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) {
                    const Floats value = splat(vectors[d * ROWS + r]);
#pragma GCC unroll 3
                    for (int p = 0; p < PANELS; p++) sum[r][p] += value * code[p];
                }
            }
            for (int r = 0; r < ROWS; r++)
                for (int p = 0; p < PANELS; p++) best[r] = larger(sum[r][p], best[r]);
        }
    }

public:
    explicit FloatSearch(int64_t dim) : dim(dim), group_sweeps(dim < 16 ? 4 : 1) {
        block_sweeps = group_sweeps * std::max<int64_t>(PACKED_FLOATS / (group_sweeps * WIDTH * dim), 1);
    }

    void run(const Codebook<T>& book, const std::vector<const T*>& vectors) {
        const int64_t rows = vectors.size(), padded = (rows + ROWS - 1) / ROWS * ROWS;
        const int64_t sweeps = (book.count + WIDTH - 1) / WIDTH, most = std::min(block_sweeps, sweeps);
        packed.resize(std::max<size_t>(packed.size(), most * PANELS * dim));
        bias.resize(std::max<size_t>(bias.size(), most * PANELS));
        tiles.resize(padded * dim);
        states.resize(padded);
        for (int64_t r = 0; r < padded; r++) {
            float* tile = tiles.data() + r / ROWS * dim * ROWS + r % ROWS;
            for (int64_t d = 0; d < dim; d++) tile[d * ROWS] = r < rows ? float(vectors[r][d]) : 0;
            states[r] = {splat(-INFINITY), splat(-INFINITY), Integers{}};
        }
        float *codes = reinterpret_cast<float*>(packed.data()), *biases = reinterpret_cast<float*>(bias.data());
        for (int64_t start = 0; start < sweeps; start += block_sweeps) {
            const int64_t end = std::min(start + block_sweeps, sweeps);
            pack(book, start, end - start, codes, biases);
            for (int64_t row = 0; row < padded; row += ROWS)
                for (int64_t s = start; s < end; s += group_sweeps) {
                    Floats best[ROWS];
                    sweep(tiles.data() + row * dim, codes + (s - start) * WIDTH * dim, biases + (s - start) * WIDTH,
                          std::min(group_sweeps, end - s), dim, best);
                    const Integers group = Integers{} + int32_t(s / group_sweeps);
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

    // The codes in question for vector r: those of the best group of a lane, or all of a lane whose other groups come
    // as close.
    template <typename Visit>
    void each(const Codebook<T>& book, int64_t r, const Extent& extent, const Visit& visit) const {
        const State& state = states[r];
        const int64_t group_codes = group_sweeps * WIDTH;
        const bool all = !extent.fits_float();
        const float threshold = all ? 0 : extent.threshold(highest_lane(state.best), dim);
        for (int lane = 0; lane < LANES; lane++) {
            if (!all && !(state.best[lane] >= threshold)) continue;
            const bool whole = all || state.second[lane] >= threshold;
            const int64_t group = whole ? 0 : state.group[lane], end = whole ? book.count : (group + 1) * group_codes;
            for (int64_t k = group * group_codes + lane; k < end; k += LANES) visit(k);
        }
    }
};

// For a few vectors, one in each lane of a few registers: reads the codes once, as they lie, and multiplies each with all
// vectors. Keeps the best score that each vector has among GROUP consecutive codes.
template <typename T> class FewSearch {
#if defined(__AVX512F__)
    static constexpr int PARTS = 1, GROUP = 8, CHAINS = 2;  // registers of vectors; codes; sums that do not wait
#else
    static constexpr int PARTS = 2, GROUP = 4, CHAINS = 1;
#endif
    static constexpr int LINE = 16;  // floats of a line of the cache

    struct Lanes {  // a value for each vector
        Floats parts[PARTS];
    };

    int64_t dim;
    std::vector<Lanes> vectors, best;  // (dim), (groups)
    std::vector<float> converted;      // (GROUP, dim)

    // Code k: itself where it is of float32 and not scaled, otherwise a copy.
    const float* as_float(const Codebook<T>& book, int64_t k, int64_t place) {
        if (std::is_same<T, float>::value && book.metric != COSINE) return reinterpret_cast<const float*>(book.code(k));
        float* copy = converted.data() + place * dim;
        for (int64_t d = 0; d < dim; d++) copy[d] = float(book.code(k)[d] * book.codes[k].scale);
        return copy;
    }

    static inline void add_products(const Lanes& vectors, const float* const* codes, int64_t d, Lanes* sums) {
        Floats value[PARTS];
        for (int p = 0; p < PARTS; p++) value[p] = held(vectors.parts[p]);
#pragma GCC unroll 8
        for (int j = 0; j < GROUP; j++) {
            const Floats code = splat(codes[j][d]);
#pragma GCC unroll 2
            for (int p = 0; p < PARTS; p++) sums[j].parts[p] += value[p] * code;
        }
    }

public:
    static constexpr int64_t MOST = PARTS * LANES;  // vectors

    explicit FewSearch(int64_t dim) : dim(dim), vectors(dim), converted(GROUP * dim) {}

    void run(Codebook<T>& book, const std::vector<const T*>& rows) {  // at most MOST; measures the codes, too
        for (int64_t d = 0; d < dim; d++)
            for (size_t r = 0; r < rows.size(); r++) vectors[d].parts[r / LANES][r % LANES] = float(rows[r][d]);
        best.clear();
        for (int64_t first = 0; first < book.count; first += GROUP) {
            const int64_t end = std::min(first + GROUP, book.count);
            book.measure(first, end);
            const float* codes[GROUP];
            for (int64_t j = 0; j < GROUP; j++) codes[j] = as_float(book, std::min(first + j, end - 1), j);
            Lanes sums[CHAINS][GROUP] = {};
            int64_t d = 0;
            for (; d + LINE <= dim; d += LINE) {
                for (int j = 0; j < GROUP; j++) __builtin_prefetch(codes[j] + GROUP * dim + d);  // of the next group
#pragma GCC unroll 16
                for (int i = 0; i < LINE; i++) add_products(vectors[d + i], codes, d + i, sums[i % CHAINS]);
            }
            for (; d < dim; d++) add_products(vectors[d], codes, d, sums[0]);
            Lanes highest;
            for (int p = 0; p < PARTS; p++) {
                highest.parts[p] = splat(-INFINITY);
                for (int64_t j = 0; j < end - first; j++) {
                    Floats score = sums[0][j].parts[p] + float(book.codes[first + j].bias);
                    for (int c = 1; c < CHAINS; c++) score += sums[c][j].parts[p];
                    highest.parts[p] = larger(score, highest.parts[p]);
                }
            }
            best.push_back(highest);
        }
        book.bound();
    }

    template <typename Visit>
    void each(const Codebook<T>&, int64_t r, const Extent& extent, const Visit& visit) const {
        const auto of = [&](const Lanes& group) { return group.parts[r / LANES][r % LANES]; };
        float highest = -INFINITY;
        for (const Lanes& group : best) highest = std::max(highest, of(group));
        const bool all = !extent.fits_float();
        const float threshold = all ? 0 : extent.threshold(highest, dim);
        for (size_t g = 0; g < best.size(); g++)
            if (all || of(best[g]) >= threshold)
                for (int64_t k = g * GROUP; k < int64_t(g + 1) * GROUP; k++) visit(k);
    }
};
