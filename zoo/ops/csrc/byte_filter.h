// A filter in front of the float32 search, for processors that multiply bytes four times as fast (AVX-512 VNNI).
// Vectors and codes are rounded to bytes, and what that can change a score by is bounded, so that few codes are left.
#pragma once

#include "codebook.h"

#if defined(__AVX512VNNI__)

// With x' and c' for the rounded x and c: |x.c - x'.c'| <= |x - x'| |c| + |x'| |c - c'|. Let w, the weight of a code,
// be |c|, or |c - c'| / ratio where that is more; then this is at most w (|x - x'| + |x'| ratio), for any ratio. The
// mean of |c - c'| / |c| makes it tight for most codes.
template <typename T> class ByteFilter {
    static constexpr int32_t MOST_KEPT = 96, MANY = 6;  // codes of a vector; with more it is not decided
    static constexpr size_t ALL_KEPT = 1 << 17;         // codes of all vectors
    static constexpr int64_t CHUNK_SWEEPS = 22;         // scores of so many stay in the first-level cache
    static constexpr int64_t CHUNK_BYTES = 400000;      // of packed codes, which should stay in the second-level cache
    static constexpr int64_t LEAST_DIM = 20, MOST_DIM = 8192, LEAST_CODES = 128;

    struct Rounded {  // values = step * bytes, but for `error`, the length of the difference
        double step, error;
        int32_t sum;  // of the bytes
    };
    struct Kept {
        int32_t code, next;  // next: place of the next one of the same vector, or -1
        float bound;         // the most that the score can be
    };
    struct Row {
        double norm, error;
        float step, slack;    // slack: bound of the rounding of float32
        int32_t start;        // of its sums of products
        float least;          // a bound from below of the best score
        int32_t last, count;  // of its kept codes: the place of one, or -1, and how many
        bool decided;
    };

    int64_t dim, quads;  // quads: runs of four dimensions
    std::vector<Floats> scratch;
    std::vector<int32_t> tiles;  // (vectors / ROWS, quads, ROWS) signed bytes
    std::vector<Row> rows;
    std::vector<Kept> kept;
    // of a chunk of codes
    std::vector<Integers> packed;                // (sweeps, quads, PANELS) unsigned bytes: the rounded ones + 128
    std::vector<Floats> steps, biases, weights;  // (sweeps, PANELS)
    std::vector<Floats> scores;                  // (ROWS, CHUNK_SWEEPS, PANELS)
    double ratio;

    // Writes quads * 4 bytes, each four of them `stride` words apart.
    Rounded round(const T* values, int32_t* words, int64_t stride) {
        float* copy = reinterpret_cast<float*>(scratch.data());
        for (int64_t d = 0; d < dim; d++) copy[d] = float(values[d]);
        Floats top = {};
        for (const Floats& part : scratch) top = larger(part < 0 ? -part : part, top);
        const float highest = highest_lane(top);
        if (!(highest > 1e-30f && highest < 1e37f)) {
            for (int64_t q = 0; q < quads; q++) words[q * stride] = 0;
            return {0, -1, 0};
        }
        const float inverse = 127 / highest;
        Floats squares = {};
        Integers sums = {};
        for (size_t i = 0; i < scratch.size(); i++) {
            const Floats scaled = scratch[i] * inverse;
            const Integers whole = Integers(_mm512_cvtps_epi32(__m512(scaled)));
            const Floats rest = scaled - __builtin_convertvector(whole, Floats);
            squares += rest * rest;
            sums += whole;
            alignas(16) int32_t four[4];
            _mm_store_si128(reinterpret_cast<__m128i*>(four), _mm512_cvtepi32_epi8(__m512i(whole)));
            for (int64_t q = 0; q < 4 && int64_t(i) * 4 + q < quads; q++) words[(i * 4 + q) * stride] = four[q];
        }
        // the rounding of float32: 5 at most for a value of 127 steps, and that of the sum
        const double step = double(highest) / 127, rest = std::sqrt(_mm512_reduce_add_ps(__m512(squares)));
        const double error = step * (rest * (1 + 1e-3) + 5e-5 * std::sqrt(double(dim)));
        return {step, error, _mm512_reduce_add_epi32(__m512i(sums))};
    }

    void pack(const Codebook<T>& book, int64_t first, int64_t sweeps) {
        double errors[CHUNK_SWEEPS * WIDTH], ratios = 0;
        int64_t rounded = 0;
        float *step = reinterpret_cast<float*>(steps.data()), *bias = reinterpret_cast<float*>(biases.data());
        float* weight = reinterpret_cast<float*>(weights.data());
        for (int64_t i = 0; i < sweeps * WIDTH; i++) {
            const int64_t k = first + i;
            int32_t* words = reinterpret_cast<int32_t*>(packed.data()) + i / WIDTH * quads * WIDTH + i % WIDTH;
            errors[i] = 0, step[i] = 0, bias[i] = -INFINITY;
            if (k >= book.count || !book.usable(k)) {
                for (int64_t q = 0; q < quads; q++) words[q * WIDTH] = 0;
                continue;
            }
            const Code& code = book.codes[k];
            const Rounded found = round(book.code(k), words, WIDTH);
            step[i] = float(found.step * code.scale);
            bias[i] = float(code.bias);
            errors[i] = found.error < 0 ? code.length : found.error * code.scale;
            if (found.error > 0) ratios += errors[i] / code.length, rounded++;
        }
        ratio = rounded ? ratios / rounded : 1;
        for (int64_t i = 0; i < sweeps * WIDTH; i++) {
            const int64_t k = first + i;
            const double length = bias[i] == -INFINITY ? 0 : book.codes[k].length;
            weight[i] = float(std::fmax(length, errors[i] / ratio) * (1 + 1e-6));
        }
        for (int64_t i = 0; i < sweeps * quads * PANELS; i++) packed[i] ^= Integers{} + int32_t(0x80808080);
    }

    // The scores of ROWS vectors, and by lanes the highest that they are at least.
    void multiply(int64_t row, int64_t sweeps, const float* spread, Floats* least) {
        const Integers* codes = packed.data();
        for (int r = 0; r < ROWS; r++) least[r] = splat(-INFINITY);
        for (int64_t s = 0; s < sweeps; s++) {
            const int32_t* values = tiles.data() + row * quads;
            Integers sum[ROWS][PANELS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
                for (int p = 0; p < PANELS; p++) sum[r][p] = Integers{} + rows[row + r].start;
            for (int64_t q = 0; q < quads; q++, codes += PANELS, values += ROWS)
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) {
                    const __m512i value = _mm512_set1_epi32(values[r]);
#pragma GCC unroll 3
                    for (int p = 0; p < PANELS; p++)
                        sum[r][p] = Integers(_mm512_dpbusd_epi32(__m512i(sum[r][p]), __m512i(codes[p]), value));
                }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
                for (int p = 0; p < PANELS; p++) {
                    const int64_t i = s * PANELS + p;
                    const Floats score =
                        __builtin_convertvector(sum[r][p], Floats) * (steps[i] * rows[row + r].step) + biases[i];
                    scores[(r * CHUNK_SWEEPS + s) * PANELS + p] = score;
                    least[r] = larger(score - weights[i] * spread[r], least[r]);
                }
        }
    }

    // Keeps the codes of the chunk that may be the nearest of a vector.
    void keep(Row& row, const Floats* score, int64_t first, int64_t sweeps, float spread) {
        const float threshold = row.least - row.slack;
        const Floats* weight = weights.data();
        for (int64_t i = 0; i < sweeps * PANELS; i += PANELS) {
            Floats bound[PANELS];
            uint64_t lanes = 0;
            for (int p = 0; p < PANELS; p++) {
                bound[p] = score[i + p] + weight[i + p] * spread;
                const uint64_t high = _mm512_cmp_ps_mask(__m512(bound[p]), __m512(splat(threshold)), _CMP_GE_OQ);
                lanes |= high << (p * LANES);
            }
            for (; lanes; lanes &= lanes - 1) {
                if (kept.size() == ALL_KEPT || (row.count == MOST_KEPT && drop(row, threshold) == MOST_KEPT)) {
                    row.decided = false;
                    return;
                }
                const int place = __builtin_ctzll(lanes);
                kept.push_back({int32_t(first + i * LANES + place), row.last, bound[place / LANES][place % LANES]});
                row.last = int32_t(kept.size()) - 1, row.count++;
            }
        }
    }

    // Forgets the codes of a vector whose score cannot reach the threshold; returns how many are left.
    int32_t drop(Row& row, float threshold) {
        int32_t* link = &row.last;
        row.count = 0;
        for (int32_t i = row.last; i >= 0; i = kept[i].next)
            if (kept[i].bound >= threshold) *link = i, link = &kept[i].next, row.count++;
        *link = -1;
        return row.count;
    }

public:
    explicit ByteFilter(int64_t dim) : dim(dim), quads((dim + 3) / 4), scratch((dim + LANES - 1) / LANES) {}

    bool pays(const Codebook<T>& book) const {
        return LEAST_DIM <= dim && dim <= MOST_DIM && LEAST_CODES <= book.count && book.count < INT32_MAX;
    }

    void run(const Codebook<T>& book, const std::vector<const T*>& vectors, const std::vector<Extent>& extents) {
        const int64_t count = vectors.size(), padded = (count + ROWS - 1) / ROWS * ROWS;
        const int64_t all = (book.count + WIDTH - 1) / WIDTH;
        const int64_t fitting = std::max<int64_t>(CHUNK_BYTES / (WIDTH * quads * 4), 1);
        const int64_t most = std::min(std::min(CHUNK_SWEEPS, fitting), all);
        tiles.resize(padded * quads);
        rows.assign(padded, {0, 0, 0, 0, 0, -INFINITY, -1, 0, false});
        kept.clear();
        packed.resize(std::max<size_t>(packed.size(), most * quads * PANELS));
        for (std::vector<Floats>* part : {&steps, &biases, &weights}) part->resize(CHUNK_SWEEPS * PANELS);
        scores.resize(ROWS * CHUNK_SWEEPS * PANELS);
        for (int64_t r = 0; r < count; r++) {
            const Extent& extent = extents[r];
            if (!extent.finite() || !extent.fits_float()) continue;
            const Rounded found = round(vectors[r], tiles.data() + r / ROWS * quads * ROWS + r % ROWS, ROWS);
            const double slack = extent.magnitude * 0x1p-19 + (1 + extent.norm + extent.reach) * 1e-36;
            rows[r] = {extent.norm, found.error < 0 ? extent.norm : found.error, float(found.step), float(slack),
                       -128 * found.sum, -INFINITY, -1, 0, true};
        }
        for (int64_t start = 0; start < all; start += most) {
            const int64_t sweeps = std::min(most, all - start), first = start * WIDTH;
            pack(book, first, sweeps);
            for (int64_t row = 0; row < padded; row += ROWS) {
                float spread[ROWS];
                Floats least[ROWS];
                for (int r = 0; r < ROWS; r++) {
                    const Row& of = rows[row + r];
                    spread[r] = float((of.error + (of.norm + of.error) * ratio) * (1 + 1e-6));
                }
                multiply(row, sweeps, spread, least);
                for (int r = 0; r < ROWS; r++) {
                    Row& of = rows[row + r];
                    of.least = std::max(of.least, highest_lane(least[r]));
                    if (of.decided) keep(of, scores.data() + r * CHUNK_SWEEPS * PANELS, first, sweeps, spread[r]);
                }
            }
        }
    }

    bool decided(int64_t r) const { return rows[r].decided && rows[r].least > -INFINITY; }

    // The codes that may be the nearest of a decided vector r.
    template <typename Visit>
    void each(const Codebook<T>& book, const T* vector, int64_t r, const Visit& visit) const {
        const Row& row = rows[r];
        double least = row.least;
        if (row.count > MANY) {  // the score of the most promising one leaves few of them
            int32_t first = row.last;
            for (int32_t i = row.last; i >= 0; i = kept[i].next)
                if (kept[i].bound > kept[first].bound) first = i;
            least = std::max(least, book.score(vector, kept[first].code));
        }
        for (int32_t i = row.last; i >= 0; i = kept[i].next)
            if (kept[i].bound >= least - row.slack) visit(kept[i].code);
    }
};
#else
template <typename T> class ByteFilter {  // there is none
public:
    explicit ByteFilter(int64_t) {}
    bool pays(const Codebook<T>&) const { return false; }
    void run(const Codebook<T>&, const std::vector<const T*>&, const std::vector<Extent>&) {}
    bool decided(int64_t) const { return false; }
    template <typename Visit> void each(const Codebook<T>&, const T*, int64_t, const Visit&) const {}
};
#endif
