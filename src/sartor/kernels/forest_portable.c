/* The walkers in plain C: sixteen trees at once, so that their loads overlap. */
#include "forest_inner.h"

#define ADD(name, real)                                                                            \
    static void name(const forest *f, real *sums, uint32_t first, const uint32_t *at) {            \
        uint32_t count = f->trees - first < LANES ? f->trees - first : LANES;                      \
        for (uint32_t i = 0; i < count; i++) {                                                     \
            uint64_t leaf = (uint64_t)f->start[first + i] + at[i];                                 \
            if (f->width == 1) {                                                                   \
                sums[f->output[first + i]] += ((const real *)f->leaves)[leaf];                     \
            } else {                                                                               \
                const real *row = (const real *)f->table +                                         \
                                  (uint64_t)((const uint32_t *)f->leaves)[leaf] * f->width;        \
                for (uint32_t k = 0; k < f->width; k++) sums[k] += row[k];                         \
            }                                                                                      \
        }                                                                                          \
    }
ADD(add_float, float)
ADD(add_double, double)

void forest_add(const block *b, size_t row, uint32_t first, const uint32_t *at) {
    if (b->f->sums_double)
        add_double(b->f, (double *)b->sums + row * b->f->outputs, first, at);
    else
        add_float(b->f, (float *)b->sums + row * b->f->outputs, first, at);
}

static void narrow(const forest *f, uint32_t g, const uint16_t *ranks, uint32_t *at) {
    const uint32_t *top = f->tops + (size_t)g * TOP * LANES, *start = f->start + (size_t)g * LANES;
    const uint32_t *nodes = f->nodes;
    uint32_t k = f->pair_bits, s = k + f->column_bits;
    uint32_t columns = (1u << f->column_bits) - 1, pairs = (1u << k) - 1;
    for (int lane = 0; lane < LANES; lane++) at[lane] = 0;
    for (uint32_t level = 0; level < 3; level++)
        for (uint32_t lane = 0; lane < LANES; lane++) {
            uint32_t node = top[((1u << level) - 1 + at[lane]) * LANES + lane];
            at[lane] = 2 * at[lane] + (ranks[(node >> k) & columns] >= node >> s);
        }
    for (uint32_t d = 3; d < f->depth[g]; d++) {
        uint32_t moved = 0;
        for (uint32_t lane = 0; lane < LANES; lane++) {
            uint32_t node = nodes[start[lane] + at[lane]];
            uint32_t next = 2 * (node & pairs) + (ranks[(node >> k) & columns] >= node >> s);
            moved |= next ^ at[lane];
            at[lane] = next;
        }
        if (!moved) break; /* all stand on leaves, which lead to themselves */
    }
}

static void wide(const forest *f, uint32_t g, const uint32_t *ranks, uint32_t *at) {
    const uint32_t *start = f->start + (size_t)g * LANES;
    const uint64_t *nodes = f->nodes;
    uint32_t k = f->pair_bits, s = k + f->column_bits;
    uint64_t columns = ((uint64_t)1 << f->column_bits) - 1, pairs = ((uint64_t)1 << k) - 1;
    for (int lane = 0; lane < LANES; lane++) at[lane] = 0;
    for (uint32_t d = 0; d < f->depth[g]; d++) {
        uint32_t moved = 0;
        for (uint32_t lane = 0; lane < LANES; lane++) {
            uint64_t node = nodes[start[lane] + at[lane]];
            uint32_t next = 2 * (uint32_t)(node & pairs) + (ranks[(node >> k) & columns] >= node >> s);
            moved |= next ^ at[lane];
            at[lane] = next;
        }
        if (!moved) break;
    }
}

static void oblivious(const forest *f, uint32_t g, const uint16_t *ranks, uint32_t *at) {
    const uint32_t *split = f->tops + f->top_at[g];
    for (int lane = 0; lane < LANES; lane++) at[lane] = 0;
    for (uint32_t d = 0; d < f->depth[g]; d++, split += LANES)
        for (uint32_t lane = 0; lane < LANES; lane++)
            at[lane] |= (uint32_t)(ranks[split[lane] & 0xffff] >= split[lane] >> 16) << d;
}

void forest_walk_portable(const block *b) {
    const forest *f = b->f;
    uint32_t at[LANES];
    for (uint32_t g = 0; g < f->groups; g++)
        for (size_t r = 0; r < b->rows; r++) {
            if (f->layout == NARROW)
                narrow(f, g, (const uint16_t *)b->ranks + r * f->padded, at);
            else if (f->layout == WIDE)
                wide(f, g, (const uint32_t *)b->ranks + r * f->padded, at);
            else
                oblivious(f, g, (const uint16_t *)b->ranks + r * f->padded, at);
            forest_add(b, r, g * LANES, at);
        }
}
