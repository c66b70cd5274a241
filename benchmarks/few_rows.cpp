// SPDX-License-Identifier: Apache-2.0
// What the second and third row of a product with bfloat16 weights cost in kernels written by hand for one shape and an
// x86 CPU with AVX2, beside what compilers make of `PLTLinear`: with the weights in memory, and with as much arithmetic
// on weights in the cache.
//   g++ -O3 -march=native -fopenmp benchmarks/few_rows.cpp -o few_rows && OMP_NUM_THREADS=2 ./few_rows

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

constexpr int64_t IN = 4096;
constexpr int64_t CACHED = 32;  // outputs whose weights stay in the cache, 0.26 MB
constexpr int MOST_ROWS = 3, ROUNDS = 25;

// `rows` [ROWS, IN] times `weight` [out, IN], OUTPUTS outputs at a time; no rows is reading alone. The weights of an
// output are those of its number modulo `distinct`. A register holds the even ones of 16 weights or the odd ones, because
// one shift or mask of 32-bit words turns them into float32; the numbers of a row lie in that order.
template <int ROWS, int OUTPUTS>
void multiply(const uint16_t* weight, const float* rows, float* output, int64_t out, int64_t distinct) {
    const __m256i high = _mm256_set1_epi32(0xffff0000);
#pragma omp parallel for
    for (int64_t first = 0; first < out; first += OUTPUTS) {
        const uint16_t* block = weight + first % distinct * IN;
        __m256 sums[std::max(ROWS, 1)][OUTPUTS] = {};
        for (int64_t i = 0; i < IN; i += 16) {
            for (int o = 0; o < OUTPUTS; ++o) {
                const __m256i pairs = _mm256_loadu_si256((const __m256i*)(block + o * IN + i));
                const __m256 halves[2] = {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
                                          _mm256_castsi256_ps(_mm256_and_si256(pairs, high))};
                for (int half = 0; half < 2; ++half) {
                    if (ROWS == 0) sums[0][o] = _mm256_xor_ps(sums[0][o], halves[half]);
                    for (int row = 0; row < ROWS; ++row) {
                        const __m256 terms = _mm256_loadu_ps(rows + row * IN + i + 8 * half);
                        sums[row][o] = _mm256_fmadd_ps(halves[half], terms, sums[row][o]);
                    }
                }
            }
        }
        for (int row = 0; row < std::max(ROWS, 1); ++row)
            for (int o = 0; o < OUTPUTS; ++o) {
                float total = 0;
                for (int lane = 0; lane < 8; ++lane) total += sums[row][o][lane];
                output[row * out + first + o] = total;
            }
    }
}

float number(uint16_t weight) {
    const uint32_t bits = uint32_t(weight) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// The products [MOST_ROWS, out] that every kernel must give, in float64 and by the order of the registers.
std::vector<double> expected(const std::vector<uint16_t>& weight, const std::vector<float>& rows, int64_t distinct) {
    const int64_t out = weight.size() / IN;
    std::vector<double> products(MOST_ROWS * out);
    for (int row = 0; row < MOST_ROWS; ++row)
        for (int64_t o = 0; o < distinct; ++o)
            for (int64_t i = 0; i < IN; ++i) {
                const int64_t place = i / 16 * 16 + i % 2 * 8 + i % 16 / 2;
                products[row * out + o] += double(number(weight[o * IN + i])) * rows[row * IN + place];
            }
    for (int row = 0; row < MOST_ROWS; ++row)
        for (int64_t o = distinct; o < out; ++o) products[row * out + o] = products[row * out + o % distinct];
    return products;
}

// Ends the program unless the first `count` numbers are the expected ones.
void check(const std::vector<float>& output, const std::vector<double>& products, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (!(std::abs(output[i] - products[i]) < 1e-4)) {
            std::fprintf(stderr, "product %ld: expected %f, got %f\n", long(i), products[i], output[i]);
            std::exit(1);
        }
}

using Kernel = void (*)(const uint16_t*, const float*, float*, int64_t, int64_t);
template <int ROWS>
constexpr std::array<Kernel, 3> kernels = {multiply<ROWS, 1>, multiply<ROWS, 2>, multiply<ROWS, 4>};

// GB/s of 0 to MOST_ROWS rows: the median of rounds in which all kernels take turns, of the best number of outputs.
std::array<double, MOST_ROWS + 1> rates(const std::vector<uint16_t>& weight, int64_t distinct) {
    const int64_t out = weight.size() / IN;
    const std::array<std::array<Kernel, 3>, MOST_ROWS + 1> all = {kernels<0>, kernels<1>, kernels<2>, kernels<3>};
    std::vector<float> rows(MOST_ROWS * IN), output(MOST_ROWS * out);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = i * 2654435761u % 1000 * 0.001f - 0.5f;
    const auto products = expected(weight, rows, distinct);
    std::array<std::array<std::vector<double>, 3>, MOST_ROWS + 1> measured;
    for (int round = 0; round <= ROUNDS; ++round)
        for (int count = 0; count <= MOST_ROWS; ++count)
            for (int kernel = 0; kernel < 3; ++kernel) {
                if (round == 0) std::fill(output.begin(), output.end(), NAN);
                const auto start = std::chrono::steady_clock::now();
                all[count][kernel](weight.data(), rows.data(), output.data(), out, distinct);
                const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
                if (round == 0)  // which warms up
                    check(output, products, count * out);
                else
                    measured[count][kernel].push_back(weight.size() * 2 / elapsed.count());
            }
    std::array<double, MOST_ROWS + 1> best = {};
    for (int count = 0; count <= MOST_ROWS; ++count)
        for (auto& rounds : measured[count]) {
            std::sort(rounds.begin(), rounds.end());
            best[count] = std::max(best[count], rounds[ROUNDS / 2]);
        }
    return best;
}

int main(int argc, char** argv) {
    const int64_t out = argc > 1 ? std::atoll(argv[1]) : 81920;  // 0.67 GB of weights, beyond every cache
    if (out < CACHED || out % CACHED != 0) {
        std::fprintf(stderr, "expected a multiple of %ld outputs, got %s\n", long(CACHED), argv[1]);
        return 2;
    }
    std::vector<uint16_t> weight(IN * out);
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = 0x3c00 + i % 251;  // 0.008 to 0.016
    const auto memory = rates(weight, out), cache = rates(weight, CACHED);
    std::printf("| rows | from memory, GB/s | time to one row | from the cache, GB/s | time to one row |\n");
    std::printf("|---|---|---|---|---|\n");
    for (int count = 0; count <= MOST_ROWS; ++count)
        std::printf("| %d | %.1f | %.2f | %.1f | %.2f |\n", count, memory[count], memory[1] / memory[count], cache[count],
                    cache[1] / cache[count]);
}
