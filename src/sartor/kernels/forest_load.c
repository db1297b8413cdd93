/* A packed forest is read as hostile: every count, place and index is checked before use, and no walk
   takes more steps than its tree has entries. */
#include "forest_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    W_SIZE = 1, W_FEATURES, W_PRECISE, W_SCALES, W_CUTS, W_NUMERIC, W_FAMILIES, W_COLUMNS, W_LAYOUT,
    W_TREES, W_GROUPS, W_OUTPUTS, W_WIDTH, W_DOUBLE, W_LINK, W_COLUMN_BITS, W_PAIR_BITS, W_NODES,
    W_TABLE, W_DIVIDE, W_FACTOR, W_STEEPNESS, W_BITS, W_TOPS, W_SECTIONS
};
enum {
    S_SCALE_FEATURE, S_SCALE_START, S_CUTS, S_COLUMN_SCALE, S_COLUMN_RULE, S_FAMILY_FEATURE,
    S_FAMILY_RULE, S_FAMILY_CATEGORIES, S_FAMILY_COUNT, S_BITS, S_TOPS, S_START, S_ENTRIES, S_DEPTH,
    S_SHALLOW, S_NODES, S_LEAVES, S_TABLE, S_OUTPUT, S_BASE, S_OFFSET, SECTIONS
};
static const char MAGIC[9] = "SARTORF1";

typedef struct {
    const uint8_t *file;
    uint64_t words[W_SECTIONS + SECTIONS], size;
    const char *why;
} reader;

static const void *section(reader *r, int which, uint64_t count, uint64_t each) {
    uint64_t at = r->words[W_SECTIONS + which];
    if (at % 64 || at > r->size || (each && count > (r->size - at) / each)) {
        r->why = "the packed forest is cut short: a part of it lies outside the file";
        return NULL;
    }
    return r->file + at;
}

static double number(const reader *r, int which) {
    double value;
    memcpy(&value, &r->words[which], sizeof value);
    return value;
}

static int counts(reader *r) {
    /* Each limit keeps sums of products of counts far below 2^64. */
    static const struct { int which; uint64_t most; } limits[] = {
        {W_FEATURES, 1u << 24}, {W_PRECISE, 1}, {W_SCALES, 1u << 24}, {W_CUTS, 1u << 31},
        {W_NUMERIC, 1u << 24}, {W_FAMILIES, 1u << 20}, {W_COLUMNS, 1u << 24}, {W_LAYOUT, 2},
        {W_TREES, 1u << 28}, {W_GROUPS, 1u << 24}, {W_OUTPUTS, 1u << 20}, {W_WIDTH, 1u << 20},
        {W_DOUBLE, 1}, {W_LINK, 9}, {W_COLUMN_BITS, 24}, {W_PAIR_BITS, 31}, {W_NODES, 1u << 31},
        {W_TABLE, 1u << 31}, {W_BITS, 1ull << 40}, {W_TOPS, 1u << 31},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (r->words[limits[i].which] > limits[i].most) {
            r->why = "the packed forest states a count that no forest has";
            return -1;
        }
    uint64_t *w = r->words;
    if (!w[W_OUTPUTS] || !w[W_WIDTH] || (w[W_WIDTH] > 1 && w[W_WIDTH] != w[W_OUTPUTS]) ||
        w[W_NUMERIC] > w[W_COLUMNS] || (w[W_LINK] == 8 && w[W_OUTPUTS] != 1) || w[W_GROUPS] != (w[W_TREES] + LANES - 1) / LANES ||
        w[W_COLUMN_BITS] + w[W_PAIR_BITS] >= (w[W_LAYOUT] == WIDE ? 64u : 32u)) {
        r->why = "the packed forest contradicts itself in its counts";
        return -1;
    }
    return 0;
}

static int search_levels(reader *r, forest *f) {
    const uint32_t *feature = section(r, S_SCALE_FEATURE, f->scale_count, 4);
    const uint32_t *start = section(r, S_SCALE_START, (uint64_t)f->scale_count + 1, 4);
    size_t each = f->precise ? 8 : 4;
    const uint8_t *cuts = section(r, S_CUTS, r->words[W_CUTS], each);
    if (r->why) return -1;
    f->scales = calloc(f->scale_count + 1, sizeof *f->scales);
    size_t room = 0;
    for (uint32_t i = 0; f->scales && i < f->scale_count; i++) {
        if (feature[i] >= f->features || start[i] > start[i + 1] ||
            start[i + 1] > r->words[W_CUTS]) {
            r->why = "the packed forest has thresholds of a feature that it does not have";
            return -1;
        }
        for (size_t n = start[i + 1] - start[i];; n = (n - 1) / FAN) {
            room += n / FAN * FAN + FAN;
            if (n <= FAN) break;
        }
    }
    /* 64 bytes more: aligned by hand, and a vector may look past the end */
    f->pivots = calloc(room * each + 128, 1);
    if (!f->scales || !f->pivots) return -1;
    uint8_t *at = (uint8_t *)(((uintptr_t)f->pivots + 63) & ~(uintptr_t)63);
    for (uint32_t i = 0; i < f->scale_count; i++) {
        scale *s = &f->scales[i];
        s->feature = feature[i];
        s->count = start[i + 1] - start[i];
        if (f->layout != WIDE && s->count > 65534) { /* 65535 is what no rank reaches */
            r->why = "the packed forest has more thresholds of a feature than its nodes can tell";
            return -1;
        }
        const uint8_t *from = cuts + start[i] * each;
        size_t n = s->count, step = 1;
        int whole = 0;
        for (s->depth = 0; s->depth < LEVELS;) {
            size_t filled = n / FAN * FAN + FAN;
            s->levels[s->depth++] = at;
            for (size_t k = 0; k < filled; k++)
                if (f->precise) {
                    int64_t v = INT64_MAX;
                    if (k < n) memcpy(&v, from + ((k + 1) * step - 1) * 8, 8);
                    memcpy(at + k * 8, &v, 8);
                } else {
                    int32_t v = INT32_MAX;
                    if (k < n) memcpy(&v, from + ((k + 1) * step - 1) * 4, 4);
                    memcpy(at + k * 4, &v, 4);
                }
            at += filled * each;
            if ((whole = n <= FAN)) break;
            n = (n - 1) / FAN;
            step *= FAN;
        }
        if (!whole) {
            r->why = "the packed forest has more thresholds of a feature than can be searched";
            return -1;
        }
    }
    return 0;
}

static int set_columns(reader *r, forest *f) {
    const uint32_t *from = section(r, S_COLUMN_SCALE, f->numeric, 4);
    const uint32_t *rule = section(r, S_COLUMN_RULE, f->numeric, 4);
    if (r->why) return -1;
    f->columns = calloc(f->numeric + 1, sizeof *f->columns);
    if (!f->columns) return -1;
    for (uint32_t i = 0; i < f->numeric; i++) {
        if (from[i] >= f->scale_count || rule[i] > 4) {
            r->why = "the packed forest has a column of no feature";
            return -1;
        }
        const scale *s = &f->scales[from[i]];
        f->columns[i].scale = from[i];
        f->columns[i].when = rule[i] >= 3 ? 3 : 1;
        uint32_t zero = f->precise ? forest_search64(s, 0) : forest_search32(s, 0);
        f->columns[i].other = rule[i] == 2 ? zero : rule[i] % 2 ? s->count : 0;
        if (rule[i] == 3) f->columns[i].other = 0;
        if (rule[i] == 4) f->columns[i].other = s->count;
    }
    return 0;
}

static int set_families(reader *r, forest *f) {
    uint64_t m = f->family_count, at = 0, column = f->numeric;
    const uint32_t *feature = section(r, S_FAMILY_FEATURE, m, 4);
    const uint32_t *rule = section(r, S_FAMILY_RULE, m, 4);
    const uint32_t *categories = section(r, S_FAMILY_CATEGORIES, m, 4);
    const uint32_t *count = section(r, S_FAMILY_COUNT, m, 4);
    const uint8_t *bits = section(r, S_BITS, r->words[W_BITS], 1);
    if (r->why) return -1;
    f->families = calloc(m + 1, sizeof *f->families);
    if (!f->families) return -1;
    for (uint64_t i = 0; i < m; i++) {
        uint64_t row = ((uint64_t)count[i] + 7) / 8, room = ((uint64_t)categories[i] + 2) * row;
        if (feature[i] >= f->features || rule[i] > 2 || count[i] > f->column_count ||
            room > r->words[W_BITS] - at || column + count[i] > f->column_count) {
            r->why = "the packed forest has categories that lie outside the file";
            return -1;
        }
        f->families[i] = (family){feature[i], rule[i], categories[i], count[i], (uint32_t)column,
                                  bits + at, row};
        at += room;
        column += count[i];
    }
    if (column != f->column_count) r->why = "the packed forest has columns of no feature";
    return r->why ? -1 : 0;
}

/* One node: its column is one of the forest's, its children are itself or lie behind it. */
static int node_fits(const forest *f, uint64_t node, uint64_t own, uint64_t pairs) {
    uint64_t pair = node & (((uint64_t)1 << f->pair_bits) - 1);
    uint64_t col = (node >> f->pair_bits) & (((uint64_t)1 << f->column_bits) - 1);
    return pair < pairs && pair >= own && (col < f->column_count || (!col && !f->column_count));
}

static int check_tree(const forest *f, uint64_t start, uint64_t entries) {
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t node = f->layout == WIDE ? ((const uint64_t *)f->nodes)[start + i]
                                          : ((const uint32_t *)f->nodes)[start + i];
        if (!node_fits(f, node, i / 2, entries / 2)) return -1;
    }
    return 0;
}

static int check_oblivious(reader *r, const forest *f, const uint32_t *entries) {
    uint64_t at = 0;
    uint32_t *top_at = calloc((size_t)f->groups + 1, 4);
    ((forest *)f)->top_at = top_at;
    if (!top_at) return -1;
    for (uint32_t g = 0; g < f->groups; g++) {
        uint64_t room = (uint64_t)f->depth[g] * LANES;
        top_at[g] = (uint32_t)at;
        if (f->depth[g] > 24 || room > r->words[W_TOPS] - at) return -1;
        for (uint32_t lane = 0; lane < LANES; lane++) {
            uint64_t reach = 1;
            for (uint32_t d = 0; d < f->depth[g]; d++) {
                uint32_t split = f->tops[at + d * LANES + lane];
                if ((split & 0xffff) >= (f->column_count ? f->column_count : 1)) return -1;
                if (split >> 16 != 0xffff) reach = (uint64_t)2 << d;
            }
            if (reach > entries[g * LANES + lane]) return -1;
        }
        at += room;
    }
    return 0;
}

static int check_trees(reader *r, forest *f) {
    uint64_t lanes = (uint64_t)f->groups * LANES, nodes = r->words[W_NODES];
    const uint32_t *entries = section(r, S_ENTRIES, lanes, 4);
    size_t each = f->layout == WIDE ? 8 : 4, number = f->sums_double ? 8 : 4;
    f->start = section(r, S_START, lanes, 4);
    f->depth = section(r, S_DEPTH, f->groups, 4);
    f->shallow = section(r, S_SHALLOW, f->groups, 4);
    f->tops = section(r, S_TOPS, r->words[W_TOPS], 4);
    f->nodes = section(r, S_NODES, f->layout == OBLIVIOUS ? 0 : nodes, each);
    f->leaves = section(r, S_LEAVES, nodes, f->width > 1 ? 4 : number);
    f->table = section(r, S_TABLE, r->words[W_TABLE] * (f->width > 1 ? f->width : 0), number);
    f->output = section(r, S_OUTPUT, f->trees, 4);
    f->base = section(r, S_BASE, f->outputs, 8);
    f->offset = section(r, S_OFFSET, f->outputs, 8);
    if (r->why) return -1;
    r->why = "the packed forest has a node whose children or feature it does not have";
    if (f->layout == NARROW && r->words[W_TOPS] < (uint64_t)f->groups * TOP * LANES) return -1;
    for (uint64_t i = 0; i < lanes; i++) {
        uint64_t least = f->layout == NARROW ? 8 : f->layout == WIDE ? 2 : 1;
        if (entries[i] < least || f->start[i] > nodes || entries[i] > nodes - f->start[i]) return -1;
        if (f->layout != OBLIVIOUS && entries[i] % 2) return -1;
        if (f->layout != OBLIVIOUS && check_tree(f, f->start[i], entries[i])) return -1;
    }
    for (uint64_t g = 0; g < f->groups && f->layout != OBLIVIOUS; g++) {
        uint32_t most = 0; /* no walk is longer than its tree, whatever the file says */
        for (uint64_t i = g * LANES; i < (g + 1) * LANES; i++)
            most = entries[i] > most ? entries[i] : most;
        if (f->depth[g] > most) return -1;
    }
    if (f->layout == OBLIVIOUS && check_oblivious(r, f, entries)) return -1;
    if (f->layout == NARROW)
        for (uint64_t i = 0; i < (uint64_t)f->groups * TOP * LANES; i++) {
            uint32_t col = (f->tops[i] >> f->pair_bits) & ((1u << f->column_bits) - 1);
            if (col >= f->column_count && (col || f->column_count)) return -1;
        }
    for (uint64_t i = 0; f->width > 1 && i < nodes; i++)
        if (((const uint32_t *)f->leaves)[i] >= r->words[W_TABLE]) return -1;
    for (uint32_t i = 0; i < f->trees; i++)
        if (f->output[i] >= f->outputs) return -1;
    r->why = NULL;
    return 0;
}

static void fill(reader *r, forest *f) {
    const uint64_t *w = r->words;
    f->features = (uint32_t)w[W_FEATURES];
    f->precise = (uint32_t)w[W_PRECISE];
    f->scale_count = (uint32_t)w[W_SCALES];
    f->numeric = (uint32_t)w[W_NUMERIC];
    f->family_count = (uint32_t)w[W_FAMILIES];
    f->column_count = (uint32_t)w[W_COLUMNS];
    f->padded = (f->column_count + 31) / 32 * 32 + 32;
    f->layout = (uint32_t)w[W_LAYOUT];
    f->trees = (uint32_t)w[W_TREES];
    f->groups = (uint32_t)w[W_GROUPS];
    f->outputs = (uint32_t)w[W_OUTPUTS];
    f->width = (uint32_t)w[W_WIDTH];
    f->sums_double = (uint32_t)w[W_DOUBLE];
    f->link = (uint32_t)w[W_LINK];
    f->column_bits = (uint32_t)w[W_COLUMN_BITS];
    f->pair_bits = (uint32_t)w[W_PAIR_BITS];
    f->divide = number(r, W_DIVIDE);
    f->factor = number(r, W_FACTOR);
    f->steepness = number(r, W_STEEPNESS);
}

forest *forest_load(const void *bytes, size_t size, char *why, size_t room) {
    reader r = {0};
    snprintf(why, room, "%s", "there is no memory for this forest");
    if (size < sizeof r.words || memcmp(bytes, MAGIC, 8)) {
        snprintf(why, room, "%s", "this is no packed forest, or it was cut short");
        return NULL;
    }
    memcpy(r.words, bytes, sizeof r.words);
    r.size = size;
    if (r.words[W_SIZE] != size) r.why = "the packed forest is longer or shorter than it says";
    forest *f = NULL;
    if (!r.why && !counts(&r) && (f = calloc(1, sizeof *f))) {
        fill(&r, f);
        f->file = aligned_alloc(64, (size + 127) / 64 * 64); /* a gather may read past the end */
        if (f->file) {
            memcpy(f->file, bytes, size);
            memset(f->file + size, 0, (size + 127) / 64 * 64 - size);
            r.file = f->file;
            if (!search_levels(&r, f) && !set_columns(&r, f) && !set_families(&r, f) &&
                !check_trees(&r, f))
                return f;
        }
    }
    if (r.why) snprintf(why, room, "%s", r.why);
    forest_free(f);
    return NULL;
}

void forest_free(forest *f) {
    if (!f) return;
    free(f->file);
    free(f->pivots);
    free(f->scales);
    free(f->columns);
    free(f->families);
    free((void *)f->top_at);
    free(f);
}
