/* The walkers with AVX2: sixteen trees in two registers of eight lanes. */
#include "forest_inner.h"

#ifdef FOREST_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))
#define INLINE TARGET static inline __attribute__((always_inline))

/* -1 in the lanes that go right: ranks and what they are held against are below 2^31. */
INLINE __m256i right(const uint16_t *ranks, __m256i columns, __m256i against) {
    __m256i rank = _mm256_i32gather_epi32((const int *)(const void *)ranks, columns, 2);
    rank = _mm256_and_si256(rank, _mm256_set1_epi32(0xffff));
    return _mm256_cmpgt_epi32(rank, _mm256_sub_epi32(against, _mm256_set1_epi32(1)));
}

INLINE void narrow(const forest *f, uint32_t g, const uint16_t *ranks, uint32_t *found) {
    const __m256i *top = (const __m256i *)(f->tops + (size_t)g * TOP * LANES);
    __m128i k = _mm_cvtsi32_si128((int)f->pair_bits);
    __m128i s = _mm_cvtsi32_si128((int)(f->pair_bits + f->column_bits));
    __m256i columns = _mm256_set1_epi32((1 << f->column_bits) - 1);
    __m256i pairs = _mm256_set1_epi32((int)((1u << f->pair_bits) - 1));
    __m256i at[2], start[2];
#define RIGHT(node)                                                                                \
    right(ranks, _mm256_and_si256(_mm256_srl_epi32(node, k), columns), _mm256_srl_epi32(node, s))
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m256i *t = top + i;
        __m256i a = RIGHT(t[0]);
        __m256i b = RIGHT(_mm256_blendv_epi8(t[2], t[4], a));
        __m256i c = RIGHT(_mm256_blendv_epi8(_mm256_blendv_epi8(t[6], t[8], b),
                                             _mm256_blendv_epi8(t[10], t[12], b), a));
        at[i] = _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi32(4)),
                                _mm256_and_si256(b, _mm256_set1_epi32(2)));
        at[i] = _mm256_sub_epi32(at[i], c);
        start[i] = _mm256_load_si256((const __m256i *)(f->start + (size_t)g * LANES) + i);
    }
    for (uint32_t d = 3; d < f->depth[g]; d++) {
        __m256i still = _mm256_set1_epi32(-1);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            __m256i node = _mm256_i32gather_epi32(f->nodes, _mm256_add_epi32(start[i], at[i]), 4);
            __m256i pair = _mm256_and_si256(node, pairs);
            __m256i next = _mm256_sub_epi32(_mm256_add_epi32(pair, pair), RIGHT(node));
            still = _mm256_and_si256(still, _mm256_cmpeq_epi32(next, at[i]));
            at[i] = next;
        }
        if (d >= f->shallow[g] && _mm256_movemask_epi8(still) == -1) break;
    }
    _mm256_storeu_si256((__m256i *)found, at[0]);
    _mm256_storeu_si256((__m256i *)(found + 8), at[1]);
}

INLINE void oblivious(const forest *f, uint32_t g, const uint16_t *ranks, uint32_t *found) {
    const __m256i *split = (const __m256i *)(f->tops + f->top_at[g]);
    __m256i low = _mm256_setzero_si256(), high = low, bit = _mm256_set1_epi32(1);
    __m256i columns = _mm256_set1_epi32(0xffff);
    for (uint32_t d = 0; d < f->depth[g]; d++, split += 2) {
        __m256i a = _mm256_loadu_si256(split), b = _mm256_loadu_si256(split + 1);
        a = right(ranks, _mm256_and_si256(a, columns), _mm256_srli_epi32(a, 16));
        b = right(ranks, _mm256_and_si256(b, columns), _mm256_srli_epi32(b, 16));
        low = _mm256_or_si256(low, _mm256_and_si256(a, bit));
        high = _mm256_or_si256(high, _mm256_and_si256(b, bit));
        bit = _mm256_add_epi32(bit, bit);
    }
    _mm256_storeu_si256((__m256i *)found, low);
    _mm256_storeu_si256((__m256i *)(found + 8), high);
}

TARGET void forest_walk_avx2(const block *b) {
    const forest *f = b->f;
    uint32_t at[LANES];
    if (f->layout == WIDE) {
        forest_walk_portable(b);
        return;
    }
    for (uint32_t g = 0; g < f->groups; g++)
        for (size_t r = 0; r < b->rows; r++) {
            const uint16_t *ranks = (const uint16_t *)b->ranks + r * f->padded;
            if (f->layout == NARROW)
                narrow(f, g, ranks, at);
            else
                oblivious(f, g, ranks, at);
            forest_add(b, r, g * LANES, at);
        }
}
#endif
