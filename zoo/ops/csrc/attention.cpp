// softmax(scale q k^T) v of many heads, in float32: scores stay in the cache of a core.
//
// Any number of threads may call the function with the same task: each takes part after part of a head's queries.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "exponential.h"

namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16, most = 4;
#elif defined(__AVX__)
constexpr int lanes = 8, most = 2;
#elif defined(__aarch64__)
constexpr int lanes = 4, most = 4;
#else
constexpr int lanes = 4, most = 2;
#endif
constexpr int rows = 6;                  // of a tile of sums, which with `most` vectors a row are in registers
constexpr int tile = lanes * most;       // keys whose values lie side by side
constexpr int64_t at_most = 48;          // queries handled at a time, and
constexpr int64_t in_cache = 48 * 1024;  // values of their scores

typedef float Vector __attribute__((vector_size(lanes * 4), aligned(4), may_alias));

struct Part {  // (items, heads, positions, width), the last axis without gaps
    const float* data;
    int64_t item, head, position;  // values from one to the next
};

struct Task {
    Part q, k, v;
    float* y;  // (items, queries, heads, width)
    int64_t items, heads, queries, keys, width;
    int64_t block;   // queries that a thread takes at a time, of one head
    int64_t next;    // the first such part that nobody has taken
    int64_t failed;  // becomes 1 where there is no memory
    int64_t open;    // keys that all queries see; a query, of the last positions, sees others up to its own
    float scale;

    int64_t seen_by(int64_t query) const { return std::max(open, query + 1 + keys - queries); }
};

struct Free {
    void operator()(float* data) const { std::free(data); }
};
using Memory = std::unique_ptr<float[], Free>;

int64_t up_to(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

Memory memory(int64_t values) {
    return Memory(static_cast<float*>(std::aligned_alloc(64, up_to(values * sizeof(float), 64))));
}

Vector& vector(float* at) { return *reinterpret_cast<Vector*>(at); }
const Vector& vector(const float* at) { return *reinterpret_cast<const Vector*>(at); }

// y (rows, n vectors) = a (rows, count) b (count, n vectors)
template <int n>
inline void product(
    const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t count, float* y, int64_t y_row
) {
    Vector sum[rows][n] = {};
    for (int64_t i = 0; i < count; ++i) {
        Vector right[n];
        for (int j = 0; j < n; ++j) right[j] = vector(b + i * b_row + j * lanes);
        for (int r = 0; r < rows; ++r) {
            const float left = a[r * a_row + i];
            for (int j = 0; j < n; ++j) sum[r][j] += left * right[j];
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int j = 0; j < n; ++j) vector(y + r * y_row + j * lanes) = sum[r][j];
    }
}

// exp(x - max x) in the place of x (count), whose memory goes on to a multiple of a vector; gives the sum
float exponentials(float* x, int64_t count) {
    const int64_t end = up_to(count, lanes);
    std::fill(x + count, x + end, x[0]);
    Vector high = vector(x);
    for (int64_t i = lanes; i < end; i += lanes) high = vector(x + i) > high ? vector(x + i) : high;
    float top = high[0];
    for (int i = 1; i < lanes; ++i) top = high[i] > top ? high[i] : top;
    for (int64_t i = 0; i < end; ++i) x[i] = exp_of(x[i] - top);
    std::fill(x + count, x + end, 0.0f);
    Vector sums = vector(x);
    for (int64_t i = lanes; i < end; i += lanes) sums += vector(x + i);
    float sum = 0.0f;
    for (int i = 0; i < lanes; ++i) sum += sums[i];
    return sum;
}

// the keys of a head (keys, width) -> tiles of (width, tile)
void transpose(const float* k, int64_t step, int64_t keys, int64_t width, float* to) {
    for (int64_t first = 0; first < keys; first += tile, to += width * tile) {
        const int64_t count = std::min<int64_t>(tile, keys - first);
        if (count < tile) std::fill(to, to + width * tile, 0.0f);
        for (int64_t s = 0; s < count; ++s) {
            const float* from = k + (first + s) * step;
            for (int64_t c = 0; c < width; ++c) to[c * tile + s] = from[c];
        }
    }
}

}  // namespace

extern "C" {

void zoo_attention(Task* task) {
    const int64_t keys = task->keys, width = task->width, parts = up_to(task->queries, task->block) / task->block;
    const int64_t row = up_to(keys, tile), wide = up_to(width, lanes);
    const int64_t at_once = std::max<int64_t>(rows, std::min(at_most, in_cache / row) / rows * rows);
    const Memory columns = memory(row * width), values = memory(keys * wide), scores = memory(at_once * row);
    const Memory queries = memory(at_once * width), mixed = memory(rows * wide);
    if (!columns || !values || !scores || !queries || !mixed) {
        __atomic_store_n(&task->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    const float scale = task->scale;
    int64_t known = -1;
    for (;;) {
        const int64_t part = __atomic_fetch_add(&task->next, 1, __ATOMIC_RELAXED), pair = part / parts;
        if (pair >= task->items * task->heads) return;
        const int64_t item = pair / task->heads, head = pair % task->heads;
        if (pair != known) {
            transpose(
                task->k.data + item * task->k.item + head * task->k.head, task->k.position, keys, width, columns.get()
            );
            const float* from = task->v.data + item * task->v.item + head * task->v.head;
            for (int64_t s = 0; s < keys; ++s) {
                float* to = values.get() + s * wide;
                std::copy(from + s * task->v.position, from + s * task->v.position + width, to);
                std::fill(to + width, to + wide, 0.0f);
            }
            known = pair;
        }
        const int64_t end = std::min(task->queries, (part % parts + 1) * task->block);
        for (int64_t first = part % parts * task->block; first < end; first += at_once) {
            const int64_t count = std::min(at_once, end - first), filled = up_to(count, rows);
            const auto query_of = [=](int64_t r) { return first + std::min(r, count - 1); };
            const auto seen = [=](int64_t r) { return task->seen_by(query_of(r)); };  // grows with r
            for (int64_t r = 0; r < filled; ++r) {
                const int64_t query = query_of(r);
                const float* from = task->q.data + item * task->q.item + head * task->q.head + query * task->q.position;
                for (int64_t i = 0; i < width; ++i) queries[r * width + i] = from[i] * scale;
            }
            for (int64_t s = 0; s < seen(filled); s += tile) {
                for (int64_t r = 0; r < filled; r += rows) {
                    if (s >= seen(r + rows - 1)) continue;
                    product<most>(
                        &queries[r * width], width, &columns[s * width], tile, width, &scores[r * row + s], row
                    );
                }
            }
            for (int64_t r = 0; r < filled; r += rows) {
                const int64_t most_seen = seen(r + rows - 1);
                float sums[rows];
                for (int i = 0; i < rows; ++i) {
                    float* x = &scores[(r + i) * row];
                    sums[i] = exponentials(x, seen(r + i));
                    std::fill(x + seen(r + i), x + most_seen, 0.0f);
                }
                int64_t c = 0;
                for (; c + most * lanes <= wide; c += most * lanes) {
                    product<most>(&scores[r * row], row, &values[c], wide, most_seen, &mixed[c], wide);
                }
                for (; c < wide; c += lanes) {
                    product<1>(&scores[r * row], row, &values[c], wide, most_seen, &mixed[c], wide);
                }
                for (int64_t i = 0; i < std::min<int64_t>(rows, count - r); ++i) {
                    float* y = task->y + ((item * task->queries + first + r + i) * task->heads + head) * width;
                    const float share = 1.0f / sums[i];
                    for (int64_t j = 0; j < width; ++j) y[j] = mixed[i * wide + j] * share;
                }
            }
        }
    }
}
}
