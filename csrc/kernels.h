/* The C ABI of tts_kernels: kernels for test-time search on raw pointers.
 *
 * Conventions
 *   - C-compatible, no exception crosses, no global state. A launcher returns TTS_OK or an error code, and then tts_last_error()
 *     describes the error of the calling thread: the argument, its value, the allowed range. Nothing useful was written.
 *   - Tensors are dense and row-major unless a stride (in elements) follows them. `T` is the type that `dtype` names; arithmetic
 *     is float32 whatever T is. `nullable` marks the pointers that may be null; a tensor of no elements may be null as well.
 *   - Indices are checked (slots, layers, pages, nodes, offsets). Not checked, because C cannot: that a pointer is valid for the
 *     stated shape and aligned to its element, that outputs do not overlap inputs, and what is listed as `unchecked`.
 *   - Same inputs, same bits: for any number of threads, and a row's result does not depend on the other rows of the call.
 *   - Thread-safe as long as the written buffers differ. Scratch memory belongs to the calling thread and only grows.
 *
 * Dimensions: B rows, T tokens, H query heads, G KV heads, D head dim, E hidden size, P pages, S page size, V
 * vocabulary, X nodes, W work items, R segments. A slot is page * S + offset.
 */
#ifndef TTS_KERNELS_H
#define TTS_KERNELS_H

#include <stdint.h>

#if defined(__GNUC__)
#define TTS_API __attribute__((visibility("default")))
#else
#define TTS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define TTS_ABI_VERSION 2

enum { TTS_OK = 0, TTS_INVALID_ARGUMENT = 1, TTS_OUT_OF_MEMORY = 2, TTS_INTERNAL_ERROR = 3 };

enum { TTS_F32 = 0, TTS_F16 = 1, TTS_BF16 = 2 };                                                      /* dtype */
enum { TTS_TOP = 0, TTS_SOFTMAX = 1, TTS_SYSTEMATIC = 2, TTS_MULTINOMIAL = 3, TTS_PROPORTIONAL = 4 }; /* rule of tts_prune */
enum { TTS_ACTIVATION_SOFTMAX = 0, TTS_ACTIVATION_SIGMOID = 1 }; /* activation of tts_score */
enum {
  TTS_DRAM_READ = 0,
  TTS_DRAM_COPY = 1,
  TTS_CACHE_READ = 2,
  TTS_F32_FMA = 3,
  TTS_BF16_DOT = 4,
  TTS_BF16_TILES = 5,
  TTS_F32_EXP2 = 6
}; /* which of tts_ceiling */

enum { TTS_ISA_BASE = 0, TTS_ISA_AVX2 = 1, TTS_ISA_AVX512 = 2, TTS_ISA_AVX512_BF16 = 3, TTS_ISA_AMX_BF16 = 4 }; /* tts_isa */

/* The version of this header that the library was built with. */
TTS_API int tts_abi_version(void);

/* The message of the calling thread's last error; valid until its next error. Never null. */
TTS_API const char* tts_last_error(void);

/* The instruction set in use (TTS_ISA_*): the machine's, unless it is limited. */
TTS_API int tts_isa(void);

/* Use nothing beyond `isa` from now on, in the whole process: to test the code for lesser machines, or to compare with them. */
TTS_API int tts_limit_isa(int isa);

/* The weight of tts_linear in the order in which it is read: panels of 16 rows, in a panel blocks of 32 k, in a block 16 pairs of
 * k x 16 rows x 2. Zeros fill the last panel and the last blocks.
 *   weight T[N,K] with rows weight_stride apart, packed T[ceil(N/16),ceil(K/32),16,16,2]
 * Bytes: 2*N*K * sizeof(T). */
TTS_API int tts_pack(int dtype, int64_t N, int64_t K, const void* weight, int64_t weight_stride, void* packed);

/* out = x @ weight.T + bias, summed over K in a fixed order.
 *   x T[M,K] with rows x_stride apart, packed the weight T[N,K] through tts_pack, bias T[N] nullable, out T[M,N]
 * Bytes: (M*K + N*K + M*N) * sizeof(T); the weight is read once per 64 to 256 rows, by each of the threads that rows are
 * shared out between. */
TTS_API int tts_linear(int dtype, int64_t M, int64_t N, int64_t K, const void* x, int64_t x_stride, const void* packed,
                       const void* bias, void* out);

/* out = weight * (x / sqrt(mean(x^2) + eps)), row by row; what is in parentheses is rounded to T before the product.
 *   x T[M,E] with rows x_stride apart, weight T[E], out T[M,E]
 * Bytes: 2*M*E * sizeof(T), and the weight once per row from cache. */
TTS_API int tts_rms_norm(int dtype, int64_t M, int64_t E, const void* x, int64_t x_stride, const void* weight, double eps,
                         void* out);

/* out[m,f] = silu(x[m,f]) * x[m,F+f] with silu(g) = g / (1 + exp(-g)), rounded to T before the product.
 *   x T[M,2*F] with rows x_stride apart, out T[M,F]
 * Bytes: 3*M*F * sizeof(T). */
TTS_API int tts_silu_and_mul(int dtype, int64_t M, int64_t F, const void* x, int64_t x_stride, void* out);

/* Rotary position embedding in place: x*cos + rotate_half(x)*sin for the first R elements of every head, where rotate_half of the
 * halves (low, high) is (-high, low); products and sum are rounded to T.
 *   x T[N,H,>=R] with tokens and heads x_token, x_head apart and dense elements; cos, sin T[N,R] with rows *_stride apart; R even
 * Bytes: (2*N*H*R + 2*N*R) * sizeof(T). */
TTS_API int tts_rope(int dtype, int64_t N, int64_t H, int64_t R, void* x, int64_t x_token, int64_t x_head, const void* cos,
                     int64_t cos_stride, const void* sin, int64_t sin_stride);

/* Write N new keys and values into their slots of one layer's pages.
 *   k, v T[N,G,D] with tokens and heads *_token, *_head apart and dense D; keys, values T[P,G,S,D] in place, with pages, heads
 *   and slots *_page, *_head, *_slot apart and dense D; slots i64[N] in [0, P*S), or -1: not written
 * Bytes: 4*N*G*D * sizeof(T). Unchecked: the slots are distinct where they are not -1. */
TTS_API int tts_append(int dtype, int64_t N, int64_t G, int64_t D, int64_t P, int64_t S, const void* k, int64_t k_token,
                       int64_t k_head, const void* v, int64_t v_token, int64_t v_head, void* keys, int64_t keys_page,
                       int64_t keys_head, int64_t keys_slot, void* values, int64_t values_page, int64_t values_head,
                       int64_t values_slot, const int64_t* slots);

/* Attention of N query tokens over the W work items of a plan, softmax(scale * q @ K) @ V.
 *   q T[N,H,D] with tokens and heads q_token, q_head apart and dense D; keys, values T[P,G,S,D] as in tts_append; spans
 *   i32[num_spans,3] = (page, first slot, count); item_indptr i32[W+1] into spans; items i32[W,3] = (q0, q1, is_causal);
 *   out T[N,H,D]; lse f32[N,H]
 * H is a multiple of G, D of 8, D <= 256; scale is finite. Items are sorted by q0, outer before inner, and nested: of two that
 * share a query one has all queries of the other; none lies inside a causal one. A query without a token gets out 0, lse -inf.
 * The bits of a query depend on the tokens of its context in their order, not on how items and spans cut them. lse of bfloat16
 * may be that of the weights as they meet the values, rounded: off by up to 2^-8. Bytes: every span once per block of query heads
 * that share it, K and V; q and out once. */
TTS_API int tts_attend(int dtype, int64_t N, int64_t H, int64_t G, int64_t D, int64_t P, int64_t S, int64_t num_spans, int64_t W,
                       const void* q, int64_t q_token, int64_t q_head, const void* keys, int64_t keys_page, int64_t keys_head,
                       int64_t keys_slot, const void* values, int64_t values_page, int64_t values_head, int64_t values_slot,
                       const int32_t* spans, const int32_t* item_indptr, const int32_t* items, double scale, void* out,
                       float* lse);

/* The weights of L layers of a Llama-like decoder, each kind those of all layers one behind the other: what is multiplied through
 * tts_pack layer by layer, the rest row-major. Biases, and the norms of queries and keys (Qwen 3's), may be null. */
typedef struct {
  const void* input_norm;             /* T[L,E] */
  const void *qkv, *qkv_bias;         /* T[L,(H+2*G)*D,E], T[L,(H+2*G)*D]: queries, keys, values */
  const void *q_norm, *k_norm;        /* T[L,D] */
  const void *o, *o_bias;             /* T[L,E,H*D], T[L,E] */
  const void* post_norm;              /* T[L,E] */
  const void *gate_up, *gate_up_bias; /* T[L,2*F,E], T[L,2*F] */
  const void *down, *down_bias;       /* T[L,E,F], T[L,E] */
} tts_decoder_weights;

/* L layers of a decoder over the pages: for each the ops above in turn, with their bits.
 *   x = rms_norm(hidden); q, k, v = linear(x), q and k through their norms where they have some, and through rope; append; attend
 *   y = hidden + linear(attend); hidden = y + linear(silu_and_mul(linear(rms_norm(y))))
 *   hidden, out T[N,E]; cos, sin T[N,R] with rows *_stride apart; R <= D; keys, values T[L,P,G,S,D] with layers *_layer apart
 * All else is as in those ops. Bytes: the weights as in tts_linear, once per 256 rows, and those of attend. */
TTS_API int tts_decoder(int dtype, int64_t L, int64_t N, int64_t E, int64_t F, int64_t H, int64_t G, int64_t D, int64_t R,
                        int64_t P, int64_t S, int64_t num_spans, int64_t W, const void* hidden, const void* cos,
                        int64_t cos_stride, const void* sin, int64_t sin_stride, void* keys, int64_t keys_layer,
                        int64_t keys_page, int64_t keys_head, int64_t keys_slot, void* values, int64_t values_layer,
                        int64_t values_page, int64_t values_head, int64_t values_slot, const int64_t* slots, const int32_t* spans,
                        const int32_t* item_indptr, const int32_t* items, double scale, double eps,
                        const tts_decoder_weights* weights, void* out);

/* The work items of B rows over the node table: row b adds tokens indptr[b]:indptr[b+1] to node leaves[b].
 *   leaves i32[B] in [0, X); indptr i32[B+1] from 0; parent (-1 at a root), start, length, first_page i32[X]; next_page i32[P];
 *   items i32[max_items,3], item_indptr i32[max_items+1], spans i32[max_spans,3] as tts_attend reads them;
 *   needed i32[2] = (items, spans): where it exceeds a capacity the rest is of no use, and the code is TTS_OK.
 * Bytes: the paths of the rows and the spans. */
TTS_API int tts_plan(int64_t B, int64_t X, int64_t P, const int32_t* leaves, const int32_t* indptr, const int32_t* parent,
                     const int32_t* start, const int32_t* length, const int32_t* first_page, const int32_t* next_page,
                     int64_t page_size, int64_t max_items, int64_t max_spans, int32_t* items, int32_t* item_indptr,
                     int32_t* spans, int32_t* needed);

/* The work items of B rows over flat page tables: row b has context[b] tokens, the last of them the tokens
 * indptr[b]:indptr[b+1] that it adds; token t lies in page page_table[b,t/page_size] at slot t%page_size. Neighbours share the
 * items of the full pages that lead both tables; new tokens and the last page are their row's alone.
 *   page_table i32[B,M] with rows page_table_stride apart, read up to the context only; context i32[B] in [0, M*page_size];
 *   indptr i32[B+1] from 0; outputs as in tts_plan
 * A row without new tokens reads nothing. Bytes: 4 per entry of a table, and the spans. */
TTS_API int tts_plan_pages(int64_t B, int64_t M, const int32_t* page_table, int64_t page_table_stride, const int32_t* context,
                           const int32_t* indptr, int64_t page_size, int64_t max_items, int64_t max_spans, int32_t* items,
                           int32_t* item_indptr, int32_t* spans, int32_t* needed);

/* Step scores, softmax(head @ hidden + bias)[label] or sigmoid of row `label`, and their running aggregates.
 *   hidden T[N,E] with rows hidden_stride apart, head T[C,E], bias f32[C] nullable, before f32[N,4], out f32[N], running f32[N,4]
 *   with (min, sum of logs, sum, count) per row
 * Bytes: N*E * sizeof(T), and the head once per row from cache. */
TTS_API int tts_score(int dtype, int64_t N, int64_t E, int64_t C, const void* hidden, int64_t hidden_stride, const void* head,
                      const float* bias, const float* before, int64_t label, int activation, float* out, float* running);

/* Segmented selection: how many children each row gets.
 *   scores f32[N]; indptr i32[R+1] from 0 to N; total, keep i32[R]; keys i64[R], null unless the rule draws; widths i32[N];
 *   parents i32[capacity]: the row of each child, -1 behind the last; counts i32[R]
 * Bytes: 4*(2*N + capacity) and the segments' offsets. An error if the children exceed `capacity`. */
TTS_API int tts_prune(int64_t N, int64_t R, const float* scores, const int32_t* indptr, const int32_t* total, const int32_t* keep,
                      const int64_t* keys, int rule, double temperature, int64_t capacity, int32_t* widths, int32_t* parents,
                      int32_t* counts);

/* Enter the free nodes `nodes` into the node table as empty children of `parents`, one reference each.
 *   parents, nodes i32[C] in [0, X); parent, refs, start, length, first_page, last_page i32[X] in place
 * Bytes: 7*4*C written. Unchecked: `nodes` are distinct and free. */
TTS_API int tts_fork(int64_t C, int64_t X, const int32_t* parents, const int32_t* nodes, int32_t* parent, int32_t* refs,
                     int32_t* start, int32_t* length, int32_t* first_page, int32_t* last_page);

/* Copy the first counts[n] slots of page sources[n] to page destinations[n] in each of C caches: copy-on-write for branches that
 * have a page table each.
 *   sources, destinations i32[N] in [0, P); counts i32[N] in [0, S]; caches: the addresses of C tensors T[P,G,S,D] in place, keys
 *   and values of all layers, each with pages, heads and slots caches_page, caches_head, caches_slot apart and dense D
 * Bytes: 2 * sum(counts) * C*G*D * sizeof(T). Unchecked: destinations are distinct and none is a source. */
TTS_API int tts_copy_tails(int dtype, int64_t N, int64_t C, int64_t G, int64_t D, int64_t P, int64_t S, const int32_t* sources,
                           const int32_t* destinations, const int32_t* counts, void* const* caches, int64_t caches_page,
                           int64_t caches_head, int64_t caches_slot);

/* Draw N tokens from R rows of logits, move the stop automaton, take the statistics.
 *   logits T[R,V]; row i32[N] in [0, R); key, position i64[N]; temperature f32[N] >= 0 (0: greedy); top_k i32[N] (0: off);
 *   top_p f32[N] (1: off); min_p f32[N] (0: off); state i32[N], its low 24 bits in [0, A); next_state i32[A,V];
 *   token i64[N], logprob f32[N], next i32[N]; confidence, certainty f32[N], NaN unless with_statistics
 * Bytes: V * sizeof(T) per distinct row among neighbours that share their filters, so the draws of one row stand together. */
TTS_API int tts_sample(int dtype, int64_t R, int64_t V, int64_t N, int64_t A, const void* logits, const int32_t* row,
                       const int64_t* key, const int64_t* position, const float* temperature, const int32_t* top_k,
                       const float* top_p, const float* min_p, const int32_t* state, const int32_t* next_state,
                       int with_statistics, int64_t* token, float* logprob, int32_t* next, float* confidence, float* certainty);

/* What the machine can do with all threads, the best of many rounds of a loop that does nothing else, within about `seconds`.
 *   out f64[1]: bytes/s of reading from DRAM or from the last cache, bytes/s read plus written of a copy in DRAM, FLOP/s of
 *   float32 multiply-adds, bf16 dot products or bf16 tile products, exp2/s; 0 where the machine has no such instruction
 * Takes memory of its own: at least 512 MB for the two of DRAM. */
TTS_API int tts_ceiling(int which, double seconds, double* out);

/* The same on an NVIDIA GPU, in a library that was built where nvcc is; else these do not exist. Pointers are the device's but
 * for `caches`, whose list of addresses is the host's; `stream` is a cudaStream_t. A call returns when its launches are under
 * way, so values on the device are not checked: ranges of indices are the caller's to keep. */

/* workspace: 24*N bytes, for segments of more than 1,024 rows. Children beyond `capacity` are left out of `parents`. */
TTS_API int tts_cuda_prune(int64_t N, int64_t R, const float* scores, const int32_t* indptr, const int32_t* total,
                           const int32_t* keep, const int64_t* keys, int rule, double temperature, int64_t capacity,
                           void* workspace, int32_t* widths, int32_t* parents, int32_t* counts, void* stream);

TTS_API int tts_cuda_score(int dtype, int64_t N, int64_t E, int64_t C, const void* hidden, int64_t hidden_stride,
                           const void* head, const float* bias, const float* before, int64_t label, int activation, float* out,
                           float* running, void* stream);

/* One launch for up to 448 caches. */
TTS_API int tts_cuda_copy_tails(int dtype, int64_t N, int64_t C, int64_t G, int64_t D, int64_t P, int64_t S,
                                const int32_t* sources, const int32_t* destinations, const int32_t* counts, void* const* caches,
                                int64_t caches_page, int64_t caches_head, int64_t caches_slot, void* stream);

/* workspace: 24*N*ceil(V/256) bytes, aligned to 16. V at most 2^28. Two launches.
 * Bytes: 4*V per run of neighbours that share row and temperature; what filters read again is in cache. */
TTS_API int tts_cuda_sample(int64_t R, int64_t V, int64_t N, int64_t A, const float* logits, const int32_t* row,
                            const int64_t* key, const int64_t* position, const float* temperature, const int32_t* top_k,
                            const float* top_p, const float* min_p, const int32_t* state, const int32_t* next_state,
                            int with_statistics, void* workspace, int64_t* token, float* logprob, int32_t* next,
                            float* confidence, float* certainty, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TTS_KERNELS_H */
