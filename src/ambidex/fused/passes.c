/* Passes over memory that torch makes of many small operations: each row is read once, computed in registers and the
 * first cache, and written once. compiler.py builds this file for the machine it is on; passes.py calls it; what each
 * function computes is said there, and tests/test_fused.py holds it against torch.
 *
 * A number in memory is fp32, or bf16 where the `low` beside its pointer is 1; arithmetic is fp32. Rows of a tensor lie
 * `stride` numbers apart. Nothing depends on the number of threads: a row belongs to one thread, and what is summed over
 * rows is summed in blocks that only the number of rows decides. Every function returns 0, or 1 where memory ran out, and
 * `cross_entropy` 2 where a target is no class. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FEW 32768 /* numbers that one thread has done before a second one is awake */
#define BLOCKS 64 /* of rows, where something is summed over them */
#define PIECE 2048 /* numbers of a long row that are taken at a time */

static inline float widened(uint16_t low)
{
    uint32_t bits = (uint32_t)low << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline uint16_t rounded(float number) /* to nearest, ties to even; what is not a number stays so */
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint32_t near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)near;
}

/* The numbers where they lie, or widened into `room`: a copy of fp32 would cost more than the arithmetic of most passes
 * (memcpy of such lengths is `rep movsb` in glibc, slow on Zen 3). */
static float *numbers(float *room, const void *from, int low, int64_t offset, int64_t count)
{
    if (!low) return (float *)from + offset;
    const uint16_t *restrict lows = (const uint16_t *)from + offset;
    for (int64_t i = 0; i < count; i++) room[i] = widened(lows[i]);
    return room;
}

/* Where to write numbers that `settle` then leaves there or rounds into their place. */
static float *place(float *room, void *to, int low, int64_t offset) { return low ? room : (float *)to + offset; }

static void settle(void *to, int low, int64_t offset, const float *restrict from, int64_t count)
{
    uint16_t *restrict lows = (uint16_t *)to + offset;
    for (int64_t i = 0; low && i < count; i++) lows[i] = rounded(from[i]);
}

/* e^x within two units of the last place, for x up to 88; 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]
 * (Cody and Waite's reduction; coefficients of Cephes' expf, Moshier, 1992). */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's last bits are the nearest integer */
    float n = shifted - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

static float *scratch(int64_t count) { return malloc((size_t)count * sizeof(float)); }

static int64_t first_of(int64_t block, int64_t rows) { return block * rows / BLOCKS; }

/* out = x / sqrt(mean(x^2) + epsilon) * weight; scales (rows) keeps the reciprocal root. Row n of x is row n % inner of
 * group n / inner, and groups lie x_stride numbers apart: the heads of a token inside a wider product. */
int rms_norm(const void *x, int x_low, int64_t inner, int64_t x_stride, const float *weight, float epsilon, float *out,
             float *scales, int64_t rows, int64_t width, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (rows * width > FEW) reduction(| : failed)
    {
        float *room = scratch(width);
        failed |= !room;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            if (!room) continue;
            const float *restrict row = numbers(room, x, x_low, n / inner * x_stride + n % inner * width, width);
            float *restrict normed = out + n * width;
            float squares = 0;
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++) squares += row[i] * row[i];
            float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
            for (int64_t i = 0; i < width; i++) normed[i] = row[i] * scale * weight[i];
            scales[n] = scale;
        }
        free(room);
    }
    return failed;
}

/* by_x (rows, width) in x's type; sums (BLOCKS + 1, width) is scratch whose first row becomes the weight's gradient. */
int rms_norm_back(const void *gradient, int gradient_low, const void *x, int x_low, int64_t inner, int64_t x_stride,
                  const float *weight, const float *scales, void *by_x, float *sums, int64_t rows, int64_t width,
                  int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (rows * width > FEW) reduction(| : failed)
    {
        float *restrict unit = scratch(width), *room = scratch(3 * width);
        failed |= !unit || !room;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < BLOCKS; block++) {
            float *restrict sum = sums + (block + 1) * width;
            memset(sum, 0, (size_t)width * sizeof *sum);
            for (int64_t n = first_of(block, rows); n < first_of(block + 1, rows); n++) {
                if (!unit || !room) continue;
                float scale = scales[n], along = 0;
                const float *restrict row = numbers(room, x, x_low, n / inner * x_stride + n % inner * width, width);
                const float *restrict given = numbers(room + width, gradient, gradient_low, n * width, width);
                float *restrict by = place(room + 2 * width, by_x, x_low, n * width);
#pragma omp simd reduction(+ : along)
                for (int64_t i = 0; i < width; i++) {
                    float u = row[i] * scale, g = given[i];
                    sum[i] += g * u;
                    g *= weight[i];
                    along += g * u;
                    unit[i] = u;
                    by[i] = g;
                }
                along /= (float)width;
                for (int64_t i = 0; i < width; i++) by[i] = (by[i] - unit[i] * along) * scale;
                settle(by_x, x_low, n * width, by, width);
            }
        }
        free(unit);
        free(room);
    }
    memcpy(sums, sums + width, (size_t)width * sizeof *sums);
    for (int64_t block = 1; block < BLOCKS; block++)
        for (int64_t i = 0; i < width; i++) sums[i] += sums[(block + 1) * width + i];
    return failed;
}

/* Rotary positions, the two halves of a head being the two coordinates: from (B, T, H, D) to (B, H, T, D); `back` is the
 * gradient's way, from (B, H, T, D) to (B, T, H, D). Tables are (T, D). */
int rotate(const void *from, int from_low, const float *cosine, const float *sine, void *to, int to_low, int64_t batch,
           int64_t length, int64_t heads, int64_t width, int back, int threads)
{
    int failed = 0;
    int64_t half = width / 2;
#pragma omp parallel num_threads(threads) if (batch * length * heads * width > FEW) reduction(| : failed)
    {
        float *room = scratch(2 * width);
        failed |= !room;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < batch * length; n++) {
            int64_t b = n / length, t = n % length;
            const float *restrict c = cosine + t * width, *restrict s = sine + t * width;
            for (int64_t h = 0; room && h < heads; h++) {
                int64_t by_token = (n * heads + h) * width, by_head = ((b * heads + h) * length + t) * width;
                const float *first = numbers(room, from, from_low, back ? by_head : by_token, width), *second = first + half;
                float *restrict turned = place(room + width, to, to_low, back ? by_token : by_head);
                if (back) {
                    for (int64_t i = 0; i < half; i++) turned[i] = first[i] * c[i] + second[i] * s[half + i];
                    for (int64_t i = 0; i < half; i++) turned[half + i] = second[i] * c[half + i] - first[i] * s[i];
                } else {
                    for (int64_t i = 0; i < half; i++) turned[i] = first[i] * c[i] - second[i] * s[i];
                    for (int64_t i = 0; i < half; i++) turned[half + i] = second[i] * c[half + i] + first[i] * s[half + i];
                }
                settle(to, to_low, back ? by_token : by_head, turned, width);
            }
        }
        free(room);
    }
    return failed;
}

/* out = silu(gate) * up, all of one type. */
int swiglu(const void *gate, int64_t gate_stride, const void *up, int64_t up_stride, int low, void *out, int64_t rows,
           int64_t width, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (rows * width > FEW) reduction(| : failed)
    {
        float *room = scratch(3 * width);
        failed |= !room;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            if (!room) continue;
            const float *restrict g = numbers(room, gate, low, n * gate_stride, width);
            const float *restrict u = numbers(room + width, up, low, n * up_stride, width);
            float *restrict product = place(room + 2 * width, out, low, n * width);
            for (int64_t i = 0; i < width; i++) product[i] = g[i] * logistic(g[i]) * u[i];
            settle(out, low, n * width, product, width);
        }
        free(room);
    }
    return failed;
}

/* Both gradients, whose rows lie by_stride numbers apart. */
int swiglu_back(const void *gradient, const void *gate, int64_t gate_stride, const void *up, int64_t up_stride, int low,
                void *by_gate, void *by_up, int64_t by_stride, int64_t rows, int64_t width, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (rows * width > FEW) reduction(| : failed)
    {
        float *room = scratch(5 * width);
        failed |= !room;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            if (!room) continue;
            const float *restrict d = numbers(room, gradient, low, n * width, width);
            const float *restrict g = numbers(room + width, gate, low, n * gate_stride, width);
            const float *restrict u = numbers(room + 2 * width, up, low, n * up_stride, width);
            float *restrict by_g = place(room + 3 * width, by_gate, low, n * by_stride);
            float *restrict by_u = place(room + 4 * width, by_up, low, n * by_stride);
            for (int64_t i = 0; i < width; i++) {
                float share = logistic(g[i]), silu = g[i] * share;
                by_g[i] = d[i] * u[i] * (share + silu * (1.0f - share));
                by_u[i] = d[i] * silu;
            }
            settle(by_gate, low, n * by_stride, by_g, width);
            settle(by_up, low, n * by_stride, by_u, width);
        }
        free(room);
    }
    return failed;
}

/* In place: scores (matrices, rows, columns) become each row's softmax of `scale` times itself over the columns up to
 * `seen` + row, and 0 behind them. */
int causal_softmax(void *scores, int low, float scale, int64_t seen, int64_t matrices, int64_t rows, int64_t columns,
                   int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (matrices * rows * columns > FEW) reduction(| : failed)
    {
        float *room = scratch(columns);
        failed |= !room;
#pragma omp for schedule(static, 1) collapse(2) /* later rows see more: dealt out one by one */
        for (int64_t m = 0; m < matrices; m++)
            for (int64_t r = 0; r < rows; r++) {
                if (!room) continue;
                int64_t offset = (m * rows + r) * columns, count = seen + r + 1 < columns ? seen + r + 1 : columns;
                float *restrict row = numbers(room, scores, low, offset, count);
                float most = row[0], sum = 0;
#pragma omp simd reduction(max : most)
                for (int64_t i = 0; i < count; i++) most = row[i] > most ? row[i] : most;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < count; i++) sum += row[i] = exponential((row[i] - most) * scale);
                float share = 1.0f / sum;
                for (int64_t i = 0; i < count; i++) row[i] *= share;
                memset(row + count, 0, (size_t)(columns - count) * sizeof *row);
                settle(scores, low, offset, row, columns);
            }
        free(room);
    }
    return failed;
}

/* In place: the gradient by the weights becomes that by the scores. */
int causal_softmax_back(const void *weights, void *gradient, int low, float scale, int64_t seen, int64_t matrices,
                        int64_t rows, int64_t columns, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (matrices * rows * columns > FEW) reduction(| : failed)
    {
        float *room = scratch(2 * columns);
        failed |= !room;
#pragma omp for schedule(static, 1) collapse(2)
        for (int64_t m = 0; m < matrices; m++)
            for (int64_t r = 0; r < rows; r++) {
                if (!room) continue;
                int64_t offset = (m * rows + r) * columns, count = seen + r + 1 < columns ? seen + r + 1 : columns;
                const float *restrict w = numbers(room, weights, low, offset, count);
                float *restrict g = numbers(room + columns, gradient, low, offset, count);
                float along = 0;
#pragma omp simd reduction(+ : along)
                for (int64_t i = 0; i < count; i++) along += w[i] * g[i];
                for (int64_t i = 0; i < count; i++) g[i] = w[i] * (g[i] - along) * scale;
                memset(g + count, 0, (size_t)(columns - count) * sizeof *g);
                settle(gradient, low, offset, g, columns);
            }
        free(room);
    }
    return failed;
}

/* losses (rows) fp64: log sum e^logits - logits[target]; a row whose target is `ignored` has 0. Where `learning`, logits
 * (rows, classes) become the loss's gradient by them: softmax less 1 at the target, or 0 where it is ignored. */
int cross_entropy(void *logits, int low, const int64_t *targets, int64_t ignored, double *losses, int64_t rows,
                  int64_t classes, int learning, int threads)
{
    int failed = 0;
    int64_t size = low ? sizeof(uint16_t) : sizeof(float);
#pragma omp parallel num_threads(threads) if (rows * classes > FEW) reduction(| : failed)
    {
        float *room = scratch(classes);
        failed |= !room;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            if (!room) continue;
            int64_t target = targets[n];
            if (target == ignored) {
                losses[n] = 0;
                if (learning) memset((char *)logits + n * classes * size, 0, (size_t)(classes * size));
                continue;
            }
            if (target < 0 || target >= classes) {
                failed |= 2;
                losses[n] = NAN;
                continue;
            }
            float most = -INFINITY, sum = 0;
            for (int64_t from = 0; from < classes; from += PIECE) { /* so that a piece is still in the first cache */
                int64_t count = classes - from < PIECE ? classes - from : PIECE;
                const float *restrict piece = numbers(room + from, logits, low, n * classes + from, count);
#pragma omp simd reduction(max : most)
                for (int64_t i = 0; i < count; i++) most = piece[i] > most ? piece[i] : most;
            }
            /* logits that stay are exponentiated elsewhere */
            const float *read = low ? room : (float *)logits + n * classes;
            float *row = low || !learning ? room : (float *)logits + n * classes;
            float given = read[target];
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < classes; i++) sum += row[i] = exponential(read[i] - most);
            losses[n] = log((double)sum) + ((double)most - (double)given);
            if (!learning) continue;
            float share = 1.0f / sum;
            row[target] -= sum; /* 1 once it is scaled */
            for (int64_t from = 0; from < classes; from += PIECE) {
                int64_t count = classes - from < PIECE ? classes - from : PIECE;
                float *restrict piece = row + from;
                for (int64_t i = 0; i < count; i++) piece[i] *= share;
                settle(logits, low, n * classes + from, piece, count);
            }
        }
        free(room);
    }
    return failed;
}

/* Muon's momentum m += (g - m) * (1 - keep), and its direction d = m * keep + g * (1 - keep), of each of `matrices`, which
 * have `width` numbers each; out (matrices, width) becomes d over its own norm. `sums` (matrices, BLOCKS) is scratch. */
int muon_directions(const float *const *gradients, float *const *momenta, double keep, void *out, int low, double *sums,
                    int64_t matrices, int64_t width, int threads)
{
    int failed = 0;
    float give = (float)(1.0 - keep); /* in fp32 the difference would be off by many units of its last place */
#pragma omp parallel num_threads(threads) if (matrices * width > FEW) reduction(| : failed)
    {
        float *piece = scratch(PIECE);
        failed |= !piece;
#pragma omp for schedule(static) collapse(2)
        for (int64_t n = 0; n < matrices; n++)
            for (int64_t block = 0; block < BLOCKS; block++) {
                if (!piece) continue; /* before anything has moved */
                const float *restrict g = gradients[n];
                float *restrict m = momenta[n];
                double sum = 0;
                for (int64_t from = first_of(block, width), end = first_of(block + 1, width); from < end; from += PIECE) {
                    int64_t to = from + PIECE < end ? from + PIECE : end;
                    float squares = 0;
#pragma omp simd reduction(+ : squares)
                    for (int64_t i = from; i < to; i++) {
                        float moved = m[i] + (g[i] - m[i]) * give, direction = moved + (g[i] - moved) * give;
                        m[i] = moved;
                        squares += direction * direction;
                    }
                    sum += (double)squares;
                }
                sums[n * BLOCKS + block] = sum;
            }
#pragma omp for schedule(static) collapse(2)
        for (int64_t n = 0; n < matrices; n++)
            for (int64_t block = 0; block < BLOCKS; block++) {
                if (!piece) continue;
                const float *restrict g = gradients[n], *restrict m = momenta[n];
                double sum = 0;
                for (int64_t other = 0; other < BLOCKS; other++) sum += sums[n * BLOCKS + other];
                float share = (float)(1.0 / (sqrt(sum) + 1e-7));
                for (int64_t from = first_of(block, width), end = first_of(block + 1, width); from < end; from += PIECE) {
                    int64_t count = from + PIECE < end ? PIECE : end - from;
                    float *restrict unit = place(piece, out, low, n * width + from);
                    for (int64_t i = 0; i < count; i++)
                        unit[i] = (m[from + i] + (g[from + i] - m[from + i]) * give) * share;
                    settle(out, low, n * width + from, unit, count);
                }
            }
        free(piece);
    }
    return failed;
}

/* weights[n] = weights[n] * keep - updates[n] * rate, for `matrices` of `width` numbers. */
int muon_move(float *const *weights, const void *updates, int low, float keep, float rate, int64_t matrices, int64_t width,
              int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (matrices * width > FEW) reduction(| : failed)
    {
        float *piece = scratch(PIECE);
        failed |= !piece;
#pragma omp for schedule(static) collapse(2)
        for (int64_t n = 0; n < matrices; n++)
            for (int64_t block = 0; block < BLOCKS; block++) {
                if (!piece) continue;
                float *restrict w = weights[n];
                for (int64_t from = first_of(block, width), end = first_of(block + 1, width); from < end; from += PIECE) {
                    int64_t count = from + PIECE < end ? PIECE : end - from;
                    const float *restrict u = numbers(piece, updates, low, n * width + from, count);
                    for (int64_t i = 0; i < count; i++) w[from + i] = w[from + i] * keep - u[i] * rate;
                }
            }
        free(piece);
    }
    return failed;
}
