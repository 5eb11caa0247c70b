/* graphs.c: a bounded cache of recorded runs, by what they depend on: the entry, its symbols, every address. */
#include "cuda.h"

#include <stdlib.h>
#include <string.h>

static int make_key(graph_cache *cache, const job *job, const uint64_t extra[2], size_t *words) {
    *words = 4 + (size_t)job->symbol_count + (size_t)job->operand_count;
    if (*words > cache->room) {
        uint64_t *key = realloc(cache->key, *words * sizeof *key);
        if (!key) return coil_fail(COIL_MEMORY, "out of memory");
        cache->key = key, cache->room = *words;
    }
    uint64_t *at = cache->key;
    *at++ = (uint64_t)job->entry, *at++ = (uint64_t)job->watched, *at++ = extra[0], *at++ = extra[1];
    for (int32_t i = 0; i < job->symbol_count; i++) *at++ = (uint64_t)job->symbols[i];
    for (int32_t i = 0; i < job->operand_count; i++) *at++ = (uint64_t)(uintptr_t)job->operands[i].address;
    return COIL_OK;
}

static uint64_t hash_of(const uint64_t *key, size_t words) {
    uint64_t hash = words;
    for (size_t i = 0; i < words; i++) hash = (hash ^ key[i]) * UINT64_C(0x9e3779b97f4a7c15), hash ^= hash >> 29;
    return hash;
}

static void drop(device *device, graph *graph) {
    if (graph->exec) (void)device->cu.graph_exec_destroy(graph->exec);
    free(graph->key);
    memset(graph, 0, sizeof *graph);
}

static graph *oldest(graph_cache *cache) {
    if (cache->count < MOST_GRAPHS) return &cache->graphs[cache->count++];
    graph *found = cache->graphs;
    for (int32_t i = 1; i < cache->count; i++)
        if (cache->graphs[i].used < found->used) found = &cache->graphs[i];
    return found;
}

static int add(device *device, graph_cache *cache, uint64_t hash, size_t words, graph **added) {
    uint64_t *key = malloc(words * sizeof *key);
    if (!key) return coil_fail(COIL_MEMORY, "out of memory");
    *added = oldest(cache);
    drop(device, *added);
    **added = (graph){hash, ++cache->now, memcpy(key, cache->key, words * sizeof *key), words, NULL};
    return COIL_OK;
}

int coil_graph_find(device *device, graph_cache *cache, const job *job, const uint64_t extra[2], graph **found,
                    bool *fresh) {
    size_t words;
    int code = make_key(cache, job, extra, &words);
    if (code) return code;
    uint64_t hash = hash_of(cache->key, words);
    *fresh = false;
    for (int32_t i = 0; i < cache->count; i++) {
        graph *graph = &cache->graphs[i];
        if (graph->hash != hash || graph->key_words != words || memcmp(graph->key, cache->key, words * sizeof *cache->key))
            continue;
        graph->used = ++cache->now;
        return *found = graph, COIL_OK;
    }
    *fresh = true;
    return add(device, cache, hash, words, found);
}

void coil_graphs_clear(device *device, graph_cache *cache) {
    for (int32_t i = 0; i < cache->count; i++) drop(device, &cache->graphs[i]);
    free(cache->key);
    memset(cache, 0, sizeof *cache);
}
