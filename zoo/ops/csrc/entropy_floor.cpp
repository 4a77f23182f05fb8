// What a floor under the probabilities inside a logarithm adds to entropies: a plain C function, which entropy_floor.py
// calls through ctypes.
//
// The probabilities are products p = a b of an entry of each of two tables. Those below the floor add
// p (log p - log floor), whose derivative by log a, and by log b, is that plus p. All pairs are looked at, as in the
// matrix product of the tables: of as many tokens side by side as a register holds.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX512F__)
constexpr int REGISTER = 64;  // bytes
#elif defined(__AVX__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

template <typename T> struct Half {
    const T *values, *logarithms;  // (groups, count, tokens)
    int64_t count;
    T* derivatives;  // by the logarithms, of the same shape
};

// The first `count` lanes; all of them at a size that the compiler knows.
template <typename Lanes, typename T> static inline Lanes load(const T* values, int64_t count) {
    Lanes lanes = {};
    if (count == int64_t(sizeof lanes / sizeof(T)))
        memcpy(&lanes, values, sizeof lanes);
    else
        for (int64_t i = 0; i < count; i++) lanes[i] = values[i];
    return lanes;
}

template <typename Lanes, typename T> static inline void store(Lanes lanes, T* values, int64_t count) {
    if (count == int64_t(sizeof lanes / sizeof(T)))
        memcpy(values, &lanes, sizeof lanes);
    else
        for (int64_t i = 0; i < count; i++) values[i] = lanes[i];
}

template <typename T> static double add(Half<T> low, Half<T> high, int64_t groups, int64_t tokens, T floor) {
    typedef T Lanes __attribute__((vector_size(REGISTER)));
    constexpr int64_t width = REGISTER / sizeof(T);
    struct Entry {
        Lanes value, logarithm, derivative;
    };
    std::vector<Entry> entries(high.count);  // of some tokens
    const T offset = 1 - std::log(floor);
    double added = 0;
    for (int64_t group = 0; group < groups; group++)
        for (int64_t token = 0; token < tokens; token += width) {
            const int64_t count = std::min(width, tokens - token);
            for (int64_t j = 0; j < high.count; j++) {
                const int64_t place = (group * high.count + j) * tokens + token;
                entries[j] = Entry{load<Lanes>(high.values + place, count), load<Lanes>(high.logarithms + place, count), Lanes{}};
            }
            Lanes all = {};
            for (int64_t i = 0; i < low.count; i++) {
                const int64_t place = (group * low.count + i) * tokens + token;
                const Lanes value = load<Lanes>(low.values + place, count);
                const Lanes logarithm = load<Lanes>(low.logarithms + place, count) + offset;
                Lanes derivative = {}, mass = {};
                for (Entry& entry : entries) {
                    const Lanes product = value * entry.value, below = product < floor ? product : Lanes{};
                    const Lanes slope = below * (logarithm + entry.logarithm);
                    derivative += slope, entry.derivative += slope, mass += below;
                }
                store(derivative, low.derivatives + place, count);
                all += derivative - mass;
            }
            for (int64_t lane = 0; lane < width; lane++) added += all[lane];
            for (int64_t j = 0; j < high.count; j++)
                store(entries[j].derivative, high.derivatives + (group * high.count + j) * tokens + token, count);
        }
    return added;
}

// The tables are (groups, lows, tokens) and (groups, highs, tokens) without gaps, all of float64 or all of float32; the
// logarithms are finite. Returns 0, or 1 where memory ran out.
extern "C" int32_t zoo_entropy_floor(const void* low, const void* high, const void* log_low, const void* log_high,
                                     int64_t lows, int64_t highs, int64_t groups, int64_t tokens, double floor,
                                     int32_t float64, void* of_low, void* of_high, double* added) {
    const auto run = [&](auto zero) {
        typedef decltype(zero) T;
        const auto half = [](const void* values, const void* logarithms, int64_t count, void* derivatives) {
            return Half<T>{static_cast<const T*>(values), static_cast<const T*>(logarithms), count,
                           static_cast<T*>(derivatives)};
        };
        return add(half(low, log_low, lows, of_low), half(high, log_high, highs, of_high), groups, tokens, T(floor));
    };
    try {
        *added = float64 ? run(double()) : run(float());
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
