/* The walkers with AVX-512: sixteen trees in the lanes of a register, four such at a time (four
   rows of a block, or four groups of trees for one row). Where a row has at most 64 columns, its
   ranks stand in one or two registers and are looked up by a permutation, so that the node is all
   that is fetched from memory. */
#include "forest_inner.h"

#ifdef FOREST_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2")))
#define INLINE TARGET static inline __attribute__((always_inline))
enum { AT_ONCE = 4 };
enum mode { ONE_REGISTER, TWO_REGISTERS, MEMORY };

typedef struct {
    __m512i low, high;
    const uint16_t *ranks;
} row;

INLINE row load_row(enum mode mode, const uint16_t *ranks) {
    row r = {_mm512_setzero_si512(), _mm512_setzero_si512(), ranks};
    if (mode != MEMORY) r.low = _mm512_loadu_si512(ranks);
    if (mode == TWO_REGISTERS) r.high = _mm512_loadu_si512(ranks + 32);
    return r;
}

/* The ranks of sixteen columns. The permutations look at the lowest 5 or 6 bits of every 16. */
INLINE __m512i look_up(enum mode mode, const row *r, __m512i columns) {
    __m512i found;
    if (mode == ONE_REGISTER)
        found = _mm512_permutexvar_epi16(columns, r->low);
    else if (mode == TWO_REGISTERS)
        found = _mm512_permutex2var_epi16(r->low, columns, r->high);
    else
        found = _mm512_i32gather_epi32(columns, (const void *)r->ranks, 2);
    return _mm512_and_si512(found, _mm512_set1_epi32(0xffff));
}

typedef struct {
    __m512i columns, pairs;
    __m128i k, s;
} fields;

INLINE fields fields_of(const forest *f) {
    return (fields){_mm512_set1_epi32((1 << f->column_bits) - 1),
                    _mm512_set1_epi32((int)((1u << f->pair_bits) - 1)),
                    _mm_cvtsi32_si128((int)f->pair_bits),
                    _mm_cvtsi32_si128((int)(f->pair_bits + f->column_bits))};
}

INLINE __mmask16 right(enum mode mode, const row *r, const fields *x, __m512i node) {
    __m512i column = _mm512_and_si512(_mm512_srl_epi32(node, x->k), x->columns);
    return _mm512_cmpge_epu32_mask(look_up(mode, r, column), _mm512_srl_epi32(node, x->s));
}

/* The three upper levels: seven registers of nodes, chosen by blending instead of fetching. */
INLINE __m512i upper(enum mode mode, const row *r, const fields *x, const uint32_t *top) {
    const __m512i *t = (const __m512i *)top;
    __mmask16 a = right(mode, r, x, t[0]);
    __mmask16 b = right(mode, r, x, _mm512_mask_blend_epi32(a, t[1], t[2]));
    __m512i left = _mm512_mask_blend_epi32(b, t[3], t[4]);
    __m512i node = _mm512_mask_blend_epi32(a, left, _mm512_mask_blend_epi32(b, t[5], t[6]));
    __mmask16 c = right(mode, r, x, node);
    __m512i at = _mm512_maskz_set1_epi32(a, 4);
    at = _mm512_mask_or_epi32(at, b, at, _mm512_set1_epi32(2));
    return _mm512_mask_or_epi32(at, c, at, _mm512_set1_epi32(1));
}

/* Walks `n` (1 or AT_ONCE) pairs of a row and a group down to their leaves: places in `nodes`. */
INLINE void narrow(enum mode mode, int n, const forest *f, const row *rows, const uint32_t *groups,
                   __m512i *found) {
    fields x = fields_of(f);
    __m512i at[AT_ONCE], start[AT_ONCE];
    uint32_t depth = 0, shallow = UINT32_MAX;
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        uint32_t g = groups[i];
        start[i] = _mm512_load_si512(f->start + (size_t)g * LANES);
        at[i] = _mm512_add_epi32(
            start[i], upper(mode, &rows[i], &x, f->tops + (size_t)g * TOP * LANES));
        depth = f->depth[g] > depth ? f->depth[g] : depth;
        shallow = f->shallow[g] < shallow ? f->shallow[g] : shallow;
    }
    for (uint32_t d = 3; d < depth; d++) {
        __mmask16 moved = 0;
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            __m512i node = _mm512_i32gather_epi32(at[i], f->nodes, 4);
            __mmask16 go = right(mode, &rows[i], &x, node);
            __m512i pair = _mm512_and_si512(node, x.pairs);
            __m512i next = _mm512_add_epi32(start[i], _mm512_add_epi32(pair, pair));
            next = _mm512_mask_add_epi32(next, go, next, _mm512_set1_epi32(1));
            moved |= _mm512_cmpneq_epi32_mask(next, at[i]);
            at[i] = next;
        }
        if (d >= shallow && !moved) break;
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) found[i] = at[i];
}

INLINE void oblivious(enum mode mode, int n, const forest *f, const row *rows,
                      const uint32_t *groups, __m512i *found) {
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        const uint32_t *split = f->tops + f->top_at[groups[i]];
        __m512i at = _mm512_setzero_si512(), bit = _mm512_set1_epi32(1);
        for (uint32_t d = 0; d < f->depth[groups[i]]; d++) {
            __m512i s = _mm512_loadu_si512(split + d * LANES);
            __m512i column = _mm512_and_si512(s, _mm512_set1_epi32(0xffff));
            __mmask16 go = _mm512_cmpge_epu32_mask(look_up(mode, &rows[i], column),
                                                   _mm512_srli_epi32(s, 16));
            at = _mm512_mask_or_epi32(at, go, at, bit);
            bit = _mm512_add_epi32(bit, bit);
        }
        found[i] = _mm512_add_epi32(at, _mm512_load_si512(f->start + (size_t)groups[i] * LANES));
    }
}

/* Adds sixteen leaves in the order of their trees. */
INLINE void add(const block *b, size_t r, uint32_t g, __m512i at) {
    const forest *f = b->f;
    uint32_t first = g * LANES, count = f->trees - first < LANES ? f->trees - first : LANES;
    const uint32_t *to = f->output + first;
    if (f->width > 1) {
        uint32_t places[LANES];
        _mm512_storeu_si512(places, _mm512_sub_epi32(at, _mm512_load_si512(f->start + first)));
        forest_add(b, r, first, places);
    } else if (f->sums_double) {
        double values[LANES] __attribute__((aligned(64)));
        double *sums = (double *)b->sums + r * f->outputs;
        _mm512_store_pd(values, _mm512_i32gather_pd(_mm512_castsi512_si256(at), f->leaves, 8));
        _mm512_store_pd(values + 8,
                        _mm512_i32gather_pd(_mm512_extracti64x4_epi64(at, 1), f->leaves, 8));
        if (f->outputs == 1) {
            double sum = sums[0];
            for (uint32_t i = 0; i < count; i++) sum += values[i];
            sums[0] = sum;
        } else {
            for (uint32_t i = 0; i < count; i++) sums[to[i]] += values[i];
        }
    } else {
        float values[LANES] __attribute__((aligned(64)));
        float *sums = (float *)b->sums + r * f->outputs;
        _mm512_store_ps(values, _mm512_i32gather_ps(at, f->leaves, 4));
        if (f->outputs == 1) {
            float sum = sums[0];
            for (uint32_t i = 0; i < count; i++) sum += values[i];
            sums[0] = sum;
        } else {
            for (uint32_t i = 0; i < count; i++) sums[to[i]] += values[i];
        }
    }
}

INLINE void some(enum mode mode, int n, const block *b, const row *rows, const size_t *at,
                 const uint32_t *groups) {
    __m512i found[AT_ONCE];
    if (b->f->layout == NARROW)
        narrow(mode, n, b->f, rows, groups, found);
    else
        oblivious(mode, n, b->f, rows, groups, found);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) add(b, at[i], groups[i], found[i]);
}

INLINE void all(enum mode mode, const block *b) {
    const forest *f = b->f;
    const uint16_t *ranks = b->ranks;
    size_t r = b->rows / AT_ONCE * AT_ONCE;
    /* A group's nodes stay in the first cache while all rows of the block pass it. */
    for (uint32_t g = 0; r && g < f->groups; g++) {
        uint32_t groups[AT_ONCE] = {g, g, g, g};
        for (size_t from = 0; from < r; from += AT_ONCE) {
            row rows[AT_ONCE];
            size_t at[AT_ONCE];
#pragma GCC unroll 4
            for (int i = 0; i < AT_ONCE; i++) {
                at[i] = from + (size_t)i;
                rows[i] = load_row(mode, ranks + at[i] * f->padded);
            }
            some(mode, AT_ONCE, b, rows, at, groups);
        }
    }
    for (; r < b->rows; r++) {
        row one = load_row(mode, ranks + r * f->padded);
        row rows[AT_ONCE] = {one, one, one, one};
        size_t at[AT_ONCE] = {r, r, r, r};
        uint32_t g = 0;
        for (; g + AT_ONCE <= f->groups; g += AT_ONCE) {
            uint32_t groups[AT_ONCE] = {g, g + 1, g + 2, g + 3};
            some(mode, AT_ONCE, b, rows, at, groups);
        }
        for (; g < f->groups; g++) some(mode, 1, b, rows, at, &g);
    }
}

TARGET static void all_in_one(const block *b) { all(ONE_REGISTER, b); }
TARGET static void all_in_two(const block *b) { all(TWO_REGISTERS, b); }
TARGET static void all_in_memory(const block *b) { all(MEMORY, b); }

/* Symmetric trees over many rows: 32 rows in the lanes, one tree after another, so that a question
   is one load and one comparison for all of them. */
enum { MOST_COLUMNS = 128, ACROSS = 32 };

INLINE void add_across(const forest *f, void *sums, uint32_t start, __m512i at) {
    __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(at));
    __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(at, 1));
    if (f->sums_double) {
        const double *leaves = (const double *)f->leaves + start;
        __m256i part[4] = {_mm512_castsi512_si256(low), _mm512_extracti64x4_epi64(low, 1),
                           _mm512_castsi512_si256(high), _mm512_extracti64x4_epi64(high, 1)};
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            double *to = (double *)sums + 8 * i;
            __m512d leaf = _mm512_i32gather_pd(part[i], leaves, 8);
            _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), leaf));
        }
    } else {
        const float *leaves = (const float *)f->leaves + start;
        float *to = sums;
        __m512 a = _mm512_i32gather_ps(low, leaves, 4), b = _mm512_i32gather_ps(high, leaves, 4);
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), a));
        _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), b));
    }
}

/* Returns how many rows were done: a multiple of 32. One output, trees at most 16 deep. */
TARGET static size_t across(const block *b) {
    const forest *f = b->f;
    uint16_t turned[MOST_COLUMNS * BLOCK] __attribute__((aligned(64)));
    size_t rows = b->rows / ACROSS * ACROSS, each = f->sums_double ? 8 : 4;
    for (size_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < f->column_count; c++)
            turned[c * BLOCK + r] = ((const uint16_t *)b->ranks)[r * f->padded + c];
    for (uint32_t t = 0; rows && t < f->trees; t++) {
        uint32_t g = t / LANES, depth = f->depth[g];
        const uint32_t *split = f->tops + f->top_at[g] + t % LANES;
        for (size_t r = 0; r < rows; r += ACROSS) {
            __m512i at = _mm512_setzero_si512();
            for (uint32_t d = 0; d < depth; d++) {
                uint32_t s = split[d * LANES];
                __m512i ranks = _mm512_load_si512(turned + (s & 0xffff) * BLOCK + r);
                __mmask32 go =
                    _mm512_cmpge_epu16_mask(ranks, _mm512_set1_epi16((short)(s >> 16)));
                at = _mm512_or_si512(at, _mm512_maskz_set1_epi16(go, (short)(1 << d)));
            }
            add_across(f, (uint8_t *)b->sums + r * each, f->start[t], at);
        }
    }
    return rows;
}

static int fits_across(const block *b) {
    const forest *f = b->f;
    if (f->layout != OBLIVIOUS || f->outputs > 1 || f->width > 1 || b->rows < ACROSS) return 0;
    if (!f->column_count || f->column_count > MOST_COLUMNS) return 0;
    for (uint32_t g = 0; g < f->groups; g++)
        if (f->depth[g] > 16) return 0;
    return 1;
}

/* Eight lanes of 64 bits; twice for a group of sixteen trees. */
TARGET static void wide(const block *b) {
    const forest *f = b->f;
    __m512i columns = _mm512_set1_epi64((1ll << f->column_bits) - 1);
    __m512i pairs = _mm512_set1_epi64((1ll << f->pair_bits) - 1);
    __m128i k = _mm_cvtsi32_si128((int)f->pair_bits);
    __m128i s = _mm_cvtsi32_si128((int)(f->pair_bits + f->column_bits));
    for (uint32_t g = 0; g < f->groups; g++)
        for (size_t r = 0; r < b->rows; r++) {
            const uint32_t *ranks = (const uint32_t *)b->ranks + r * f->padded;
            const uint32_t *from = f->start + (size_t)g * LANES;
            __m512i start[2], at[2];
            for (int i = 0; i < 2; i++)
                at[i] = start[i] =
                    _mm512_cvtepu32_epi64(_mm256_load_si256((const __m256i *)(from + 8 * i)));
            for (uint32_t d = 0; d < f->depth[g]; d++) {
                __mmask8 moved = 0;
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    __m512i node = _mm512_i64gather_epi64(at[i], f->nodes, 8);
                    __m512i column = _mm512_and_si512(_mm512_srl_epi64(node, k), columns);
                    __m512i rank =
                        _mm512_cvtepu32_epi64(_mm512_i64gather_epi32(column, ranks, 4));
                    __mmask8 go = _mm512_cmpge_epu64_mask(rank, _mm512_srl_epi64(node, s));
                    __m512i pair = _mm512_and_si512(node, pairs);
                    __m512i next = _mm512_add_epi64(start[i], _mm512_add_epi64(pair, pair));
                    next = _mm512_mask_add_epi64(next, go, next, _mm512_set1_epi64(1));
                    moved |= _mm512_cmpneq_epi64_mask(next, at[i]);
                    at[i] = next;
                }
                if (d >= f->shallow[g] && !moved) break;
            }
            __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(at[0])),
                                              _mm512_cvtepi64_epi32(at[1]), 1);
            add(b, r, g, both);
        }
}

void forest_walk_avx512(const block *given) {
    block rest = *given, *b = &rest;
    if (fits_across(given)) {
        size_t done = across(given);
        rest.rows -= done;
        rest.ranks = (uint16_t *)given->ranks + done * given->f->padded;
        rest.sums = (uint8_t *)given->sums + done * (given->f->sums_double ? 8 : 4);
    }
    if (b->f->layout == WIDE)
        wide(b);
    else if (b->f->column_count <= 32)
        all_in_one(b);
    else if (b->f->column_count <= 64)
        all_in_two(b);
    else
        all_in_memory(b);
}

/* How many cuts a key lies beyond: sixteen compared at once on each level of the search. */
TARGET void forest_ranks_avx512(const forest *f, const int32_t *keys, uint32_t *ranks) {
    for (uint32_t i = 0; i < f->scale_count; i++) {
        const scale *s = &f->scales[i];
        __m512i key = _mm512_set1_epi32(keys[i]);
        size_t at = 0;
        for (uint32_t level = s->depth; level-- > 0;) {
            __m512i cuts = _mm512_loadu_si512((const int32_t *)s->levels[level] + at);
            at += (size_t)__builtin_popcount(_mm512_cmpgt_epi32_mask(key, cuts));
            at = level ? at * FAN : at;
        }
        ranks[i] = (uint32_t)at;
    }
}

TARGET void forest_ranks64_avx512(const forest *f, const int64_t *keys, uint32_t *ranks) {
    for (uint32_t i = 0; i < f->scale_count; i++) {
        const scale *s = &f->scales[i];
        __m512i key = _mm512_set1_epi64(keys[i]);
        size_t at = 0;
        for (uint32_t level = s->depth; level-- > 0;) {
            const int64_t *cuts = (const int64_t *)s->levels[level] + at;
            __mmask8 low = _mm512_cmpgt_epi64_mask(key, _mm512_loadu_si512(cuts));
            __mmask8 high = _mm512_cmpgt_epi64_mask(key, _mm512_loadu_si512(cuts + 8));
            at += (size_t)(__builtin_popcount(low) + __builtin_popcount(high));
            at = level ? at * FAN : at;
        }
        ranks[i] = (uint32_t)at;
    }
}
#endif
