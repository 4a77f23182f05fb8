// Nearest code of each vector, and of what each level of a residual quantizer leaves over: a plain C function, which
// nearest_code_compiled.py calls through ctypes. What the result is, the docstring of nearest_code says.
//
// A search in float32 or in bytes (float_search.h, byte_filter.h) leaves a few codes, among them all that can be the
// nearest; these are scored again in float64 (codebook.h).

#include <atomic>
#include <exception>
#include <new>
#include <thread>

#include "byte_filter.h"
#include "float_search.h"

constexpr int64_t BLOCK_FLOATS = 1 << 18;  // of the vectors that share one packing of the codes
constexpr int64_t BLOCK_ROWS = 2048;

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

template <typename T> static bool measure(std::vector<Codebook<T>>& books, int64_t threads) {
    constexpr int64_t part = 1024, worth_a_thread = 1 << 21;  // codes; values
    std::vector<std::pair<Codebook<T>*, int64_t>> parts;
    int64_t values = 0;
    for (Codebook<T>& book : books) {
        for (int64_t first = 0; first < book.count; first += part) parts.emplace_back(&book, first);
        values += book.count * book.dim;
    }
    const bool complete = parallel(std::min(threads, values / worth_a_thread), parts.size(), [&](int64_t number) {
        const auto [book, first] = parts[number];
        book->measure(first, std::min(first + part, book->count));
    });
    for (Codebook<T>& book : books) book.bound();
    return complete;
}

// Indices (rows, levels) of one block of vectors.
template <typename T> struct Block {
    bool few;
    std::vector<const T*> vectors;
    std::vector<Extent> extents;
    std::vector<int64_t> rest;  // those that the filter leaves
    std::vector<const T*> rest_vectors;
    FewSearch<T> few_search;
    ByteFilter<T> filter;
    FloatSearch<T> search;

    Block(int64_t rows, int64_t dim, bool few) : few(few), vectors(rows), few_search(dim), filter(dim), search(dim) {}

    void nearest(Codebook<T>& book, int64_t* indices, int64_t stride) {
        const auto choose = [&](int64_t r, const auto& each) {
            indices[r * stride] = decide(book, vectors[r], extents[r], each);
        };
        const int64_t rows = vectors.size();
        if (few) few_search.run(book, vectors);
        extents.clear();
        for (const T* vector : vectors) extents.emplace_back(book, vector);
        if (few) {
            for (int64_t r = 0; r < rows; r++)
                choose(r, [&](const auto& visit) { few_search.each(book, r, extents[r], visit); });
            return;
        }
        const bool filtered = filter.pays(book);
        if (filtered) filter.run(book, vectors, extents);
        rest.clear(), rest_vectors.clear();
        for (int64_t r = 0; r < rows; r++)
            if (filtered && filter.decided(r))
                choose(r, [&](const auto& visit) { filter.each(book, vectors[r], r, visit); });
            else
                rest.push_back(r), rest_vectors.push_back(vectors[r]);
        if (rest.empty()) return;
        search.run(book, rest_vectors);
        for (size_t i = 0; i < rest.size(); i++)
            choose(rest[i], [&](const auto& visit) { search.each(book, i, extents[rest[i]], visit); });
    }
};

template <typename T>
static bool residual_codes(const T* x, int64_t rows, int64_t row_stride, int64_t column_stride,
                           const void* const* codebooks, const int64_t* counts, int64_t levels, int64_t dim,
                           Metric metric, int64_t threads, int64_t* indices) {
    std::vector<Codebook<T>> books;
    books.reserve(levels);
    for (int64_t q = 0; q < levels; q++) books.emplace_back(codebooks[q], counts[q], dim, metric);
    constexpr int64_t FEW_ROWS = FewSearch<T>::MOST;  // for so few packing the codes costs more than it brings
    const bool few = rows <= FEW_ROWS;
    if (!few && !measure(books, threads)) return false;
    const int64_t most_rows = std::max(std::min(BLOCK_ROWS, BLOCK_FLOATS / dim), std::max<int64_t>(ROWS, FEW_ROWS));
    if (few) threads = 1;
    const int64_t rounds = (rows + most_rows * threads - 1) / (most_rows * threads);  // all threads end together
    const int64_t share = (rows + rounds * threads - 1) / (rounds * threads);
    const int64_t block_rows = (share + ROWS - 1) / ROWS * ROWS;
    return parallel(threads, (rows + block_rows - 1) / block_rows, [&](int64_t number) {
        const int64_t start = number * block_rows, count = std::min(block_rows, rows - start);
        Block<T> block(count, dim, few);
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
