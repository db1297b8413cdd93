/* Rows to ranks, the walkers called block by block, sums to outputs, threads. */
#include "forest.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "forest_inner.h"

/* What LightGBM calls zero: up to 1e-35, written as a float there. */
static const double TINY = 1e-35f;

#define SEARCH(name, key_type)                                                                     \
    uint32_t name(const scale *s, key_type key) {                                                  \
        size_t at = 0;                                                                             \
        for (uint32_t level = s->depth; level-- > 0;) {                                            \
            const key_type *cuts = (const key_type *)s->levels[level] + at;                        \
            uint32_t beyond = 0;                                                                   \
            for (int k = 0; k < FAN; k++) beyond += key > cuts[k];                                 \
            at = level ? (at + beyond) * FAN : at + beyond;                                        \
        }                                                                                          \
        return (uint32_t)at;                                                                       \
    }
SEARCH(forest_search32, int32_t)
SEARCH(forest_search64, int64_t)

uint32_t forest_features(const forest *f) { return f->features; }
int forest_double(const forest *f) { return (int)f->sums_double; }

uint32_t forest_outputs(const forest *f, int finished) {
    if (!finished) return f->outputs;
    return f->link == 4 ? 1 : f->link == 8 && f->outputs == 1 ? 2 : f->outputs;
}

int forest_best_level(void) {
#ifdef FOREST_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

typedef struct {
    const forest *f;
    const uint8_t *in;
    int input, finished, level;
    ptrdiff_t stride;
    size_t rows;
    uint8_t *out;
    uint32_t out_width;
} job;

static double value_at(const job *j, const uint8_t *row, uint32_t feature) {
    if (j->input == FOREST_FLOAT64) return ((const double *)row)[feature];
    return ((const float *)row)[feature];
}

/* The rank of each scale, and which of its values are missing or zero: 1 NaN, 2 LightGBM's zero. */
static void scale_ranks(const job *j, const uint8_t *row, uint32_t *ranks, uint8_t *flags,
                        int64_t *keys) {
    const forest *f = j->f;
    for (uint32_t i = 0; i < f->scale_count; i++) {
        double value = value_at(j, row, f->scales[i].feature);
        flags[i] = value != value ? 3 : fabs(value) <= TINY ? 2 : 0;
        if (f->precise) {
            uint64_t bits;
            memcpy(&bits, &value, 8);
            keys[i] = key64(bits);
        } else {
            uint32_t bits;
            float small = (float)value; /* exact where the input is float32 */
            memcpy(&bits, &small, 4);
            ((int32_t *)keys)[i] = key32(bits);
        }
    }
#ifdef FOREST_X86
    if (j->level == 2) {
        if (f->precise)
            forest_ranks64_avx512(f, keys, ranks);
        else
            forest_ranks_avx512(f, (const int32_t *)keys, ranks);
        return;
    }
#endif
    for (uint32_t i = 0; i < f->scale_count; i++)
        ranks[i] = f->precise ? forest_search64(&f->scales[i], keys[i])
                              : forest_search32(&f->scales[i], ((const int32_t *)keys)[i]);
}

/* Which row of bits a value of a categorical feature has: 0 missing, 1 unknown, from 2 categories. */
static size_t category(const family *m, double value) {
    if (value != value) return 0;
    if (m->rule == 2 && value != floor(value)) return 1;
    if (value <= -1 || (value < 0 && m->rule)) return 1;
    if (value < 0) value = 0;
    return value >= m->categories ? 1 : (size_t)value + 2;
}

#define WRITE_RANKS(name, type)                                                                    \
    static void name(const job *j, const uint8_t *row, const uint32_t *ranks,                      \
                     const uint8_t *flags, type *out) {                                            \
        const forest *f = j->f;                                                                    \
        for (uint32_t i = 0; i < f->numeric; i++) {                                                \
            column c = f->columns[i];                                                              \
            uint32_t flag = flags[c.scale];                                                        \
            /* 3: NaN, 2: zero; a column that asks for NaN alone looks at the lowest bit */        \
            out[i] = (type)(flag & c.when ? c.other : ranks[c.scale]);                             \
        }                                                                                          \
        for (uint32_t i = 0; i < f->family_count; i++) {                                           \
            const family *m = &f->families[i];                                                     \
            double value = value_at(j, row, m->feature);                                           \
            if (!f->precise) value = (float)value;                                                 \
            const uint8_t *bits = m->bits + category(m, value) * m->row;                           \
            for (uint32_t k = 0; k < m->count; k++)                                                \
                out[m->first + k] = (bits[k >> 3] >> (k & 7)) & 1;                                 \
        }                                                                                          \
    }
WRITE_RANKS(write_narrow, uint16_t)
WRITE_RANKS(write_wide, uint32_t)

#define LINK(real, suffix)                                                                         \
    static void link_##suffix(const forest *f, const real *x, real *out) {                         \
        uint32_t n = f->outputs;                                                                   \
        real top = x[0], total = 0, steep = (real)f->steepness;                                    \
        uint32_t best = 0;                                                                         \
        switch (f->link) {                                                                         \
        case 2:                                                                                    \
            for (uint32_t k = 1; k < n; k++) top = x[k] > top ? x[k] : top;                        \
            for (uint32_t k = 0; k < n; k++) total += out[k] = EXP(x[k] - top);                    \
            for (uint32_t k = 0; k < n; k++) out[k] /= total;                                      \
            return;                                                                                \
        case 4:                                                                                    \
            for (uint32_t k = 1; k < n; k++) best = x[k] > x[best] ? k : best;                     \
            out[0] = (real)best;                                                                   \
            return;                                                                                \
        case 8:                                                                                    \
            out[1] = 1 / (1 + EXP(-steep * x[0]));                                                 \
            out[0] = 1 - out[1];                                                                   \
            return;                                                                                \
        default:                                                                                   \
            for (uint32_t k = 0; k < n; k++) {                                                     \
                real v = x[k];                                                                     \
                switch (f->link) {                                                                 \
                case 1: v = 1 / (1 + EXP(-steep * v)); break;                                      \
                case 3: v = EXP(v); break;                                                         \
                case 6: v = LOG1P(EXP(v)); break;                                                  \
                case 7: v = v < 0 ? -v * v : v * v; break;                                         \
                case 9: v = v > 0; break;                                                          \
                default: break;                                                                    \
                }                                                                                  \
                out[k] = v;                                                                        \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    static void finish_##suffix(const job *j, real *sums, real *out) {                             \
        const forest *f = j->f;                                                                    \
        real divide = j->finished ? (real)f->divide : 1;                                           \
        for (uint32_t k = 0; k < f->outputs; k++)                                                  \
            sums[k] = sums[k] * (real)f->factor / divide + (real)f->offset[k];                     \
        if (j->finished && f->link)                                                                \
            link_##suffix(f, sums, out);                                                           \
        else                                                                                       \
            memcpy(out, sums, f->outputs * sizeof *out);                                           \
    }
#define EXP expf
#define LOG1P log1pf
LINK(float, float)
#undef EXP
#undef LOG1P
#define EXP exp
#define LOG1P log1p
LINK(double, double)

static void walk(const block *b, int level) {
#ifdef FOREST_X86
    if (level == 2) return (void)forest_walk_avx512(b);
    if (level == 1) return (void)forest_walk_avx2(b);
#endif
    (void)level;
    forest_walk_portable(b);
}

static void begin(const forest *f, void *sums, size_t rows) {
    for (size_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < f->outputs; k++)
            if (f->sums_double)
                ((double *)sums)[r * f->outputs + k] = f->base[k];
            else
                ((float *)sums)[r * f->outputs + k] = (float)f->base[k];
}

static size_t up(size_t bytes) { return (bytes + 63) / 64 * 64; }

static int run(const job *j) {
    const forest *f = j->f;
    size_t each = f->sums_double ? 8 : 4, rank = f->layout == WIDE ? 4 : 2;
    size_t rows = j->rows < BLOCK ? j->rows : BLOCK;
    size_t of_ranks = up(rows * f->padded * rank), of_sums = up(rows * f->outputs * each);
    size_t of_keys = up((f->scale_count + 32) * 8), of_scales = up((f->scale_count + 32) * 4);
    size_t need = of_ranks + of_sums + of_keys + of_scales + up(f->scale_count + 32) + 64;
    uint8_t local[8192], *memory = need <= sizeof local ? local : malloc(need);
    if (!memory) return -1;
    uint8_t *at = (uint8_t *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    block b = {f, 0, at, at + of_ranks};
    int64_t *keys = (int64_t *)(at + of_ranks + of_sums);
    uint32_t *ranks = (uint32_t *)(at + of_ranks + of_sums + of_keys);
    uint8_t *flags = (uint8_t *)ranks + of_scales;
    memset(b.ranks, 0, of_ranks);
    for (size_t done = 0; done < j->rows; done += b.rows) {
        b.rows = j->rows - done < BLOCK ? j->rows - done : BLOCK;
        for (size_t r = 0; r < b.rows; r++) {
            const uint8_t *row = j->in + (ptrdiff_t)(done + r) * j->stride;
            scale_ranks(j, row, ranks, flags, keys);
            if (f->layout == WIDE)
                write_wide(j, row, ranks, flags, (uint32_t *)b.ranks + r * f->padded);
            else
                write_narrow(j, row, ranks, flags, (uint16_t *)b.ranks + r * f->padded);
        }
        begin(f, b.sums, b.rows);
        walk(&b, j->level);
        for (size_t r = 0; r < b.rows; r++) {
            uint8_t *out = j->out + (done + r) * j->out_width * each;
            if (f->sums_double)
                finish_double(j, (double *)b.sums + r * f->outputs, (double *)out);
            else
                finish_float(j, (float *)b.sums + r * f->outputs, (float *)out);
        }
    }
    if (memory != local) free(memory);
    return 0;
}

typedef struct {
    job j;
    int failed;
} part;

static void *run_part(void *given) {
    part *p = given;
    p->failed = run(&p->j);
    return NULL;
}

enum { MOST_THREADS = 64 };

int forest_predict(const forest *f, const void *in, int input, ptrdiff_t stride, size_t rows,
                   void *out, int finished, int threads, int level) {
    int best = forest_best_level();
    job whole = {f, in, input, finished, level < best ? level : best, stride, rows, out,
                 forest_outputs(f, finished)};
    /* A thread costs some 20 microseconds to start: about the work of 4,000 trees on a row. */
    size_t worth = rows * (f->trees + 8) / 16384;
    size_t count = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : (size_t)threads;
    if (count > worth) count = worth ? worth : 1;
    if (count > rows / 16) count = rows / 16 ? rows / 16 : 1;
    if (count <= 1) return run(&whole);
    part parts[MOST_THREADS];
    pthread_t ids[MOST_THREADS];
    size_t share = (rows + count - 1) / count, each = f->sums_double ? 8 : 4;
    int failed = 0, started[MOST_THREADS] = {0};
    for (size_t i = 0; i < count; i++) {
        size_t first = i * share < rows ? i * share : rows;
        parts[i] = (part){whole, 0};
        parts[i].j.in = whole.in + (ptrdiff_t)first * stride;
        parts[i].j.out = whole.out + first * whole.out_width * each;
        parts[i].j.rows = rows - first < share ? rows - first : share;
        if (i) started[i] = !pthread_create(&ids[i], NULL, run_part, &parts[i]);
    }
    for (size_t i = 0; i < count; i++) {
        if (started[i])
            pthread_join(ids[i], NULL);
        else
            run_part(&parts[i]); /* the first part, and those that got no thread */
        failed |= parts[i].failed;
    }
    return failed ? -1 : 0;
}
