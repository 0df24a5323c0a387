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
 * Dimensions: B rows, T tokens, H query heads, G KV heads, D head dim, E hidden size, P pages, S page size, L layers, V
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

#define TTS_ABI_VERSION 1

enum { TTS_OK = 0, TTS_INVALID_ARGUMENT = 1, TTS_OUT_OF_MEMORY = 2, TTS_INTERNAL_ERROR = 3 };

enum { TTS_F32 = 0, TTS_F16 = 1, TTS_BF16 = 2 };                                /* dtype */
enum { TTS_TOP = 0, TTS_SOFTMAX = 1, TTS_SYSTEMATIC = 2, TTS_MULTINOMIAL = 3 }; /* rule of tts_prune */
enum { TTS_ACTIVATION_SOFTMAX = 0, TTS_ACTIVATION_SIGMOID = 1 };                /* activation of tts_score */

/* The version of this header that the library was built with. */
TTS_API int tts_abi_version(void);

/* The message of the calling thread's last error; valid until its next error. Never null. */
TTS_API const char* tts_last_error(void);

/* out = x @ weight.T + bias, summed over K in a fixed order.
 *   x T[M,K] with rows x_stride apart, weight T[N,K], bias T[N] nullable, out T[M,N]
 * Bytes: (M*K + N*K + M*N) * sizeof(T); the weight is read once per 128 rows. */
TTS_API int tts_linear(int dtype, int64_t M, int64_t N, int64_t K, const void* x, int64_t x_stride, const void* weight,
                       const void* bias, void* out);

/* Write N new keys and values of `layer` into their slots.
 *   k, v T[N,G,D] with tokens and heads *_token, *_head apart and dense D; pool T[P,L,2,G,S,D] in place; slots i64[N] in [0, P*S)
 * Bytes: 4*N*G*D * sizeof(T). Unchecked: the slots are distinct. */
TTS_API int tts_append(int dtype, int64_t N, int64_t G, int64_t D, int64_t P, int64_t L, int64_t S, const void* k,
                       int64_t k_token, int64_t k_head, const void* v, int64_t v_token, int64_t v_head, void* pool,
                       const int64_t* slots, int64_t layer);

/* Attention of N query tokens over the W work items of a plan, softmax(scale * q @ K) @ V.
 *   q T[N,H,D] with tokens and heads q_token, q_head apart and dense D; pool T[P,L,2,G,S,D]; spans i32[num_spans,3] = (page,
 *   first slot, count); item_indptr i32[W+1] into spans; items i32[W,3] = (q0, q1, is_causal); out T[N,H,D]; lse f32[N,H]
 * H is a multiple of G, D of 8, D <= 256. A query without a token gets out 0, lse -inf. The bits of a query depend on the
 * tokens of its context in their order, not on how items and spans cut them.
 * Bytes: every span once per block of up to 128 query heads of a KV head, K and V; q and out once. */
TTS_API int tts_attend(int dtype, int64_t N, int64_t H, int64_t G, int64_t D, int64_t P, int64_t L, int64_t S, int64_t num_spans,
                       int64_t W, const void* q, int64_t q_token, int64_t q_head, const void* pool, const int32_t* spans,
                       const int32_t* item_indptr, const int32_t* items, int64_t layer, double scale, void* out, float* lse);

/* The work items of B rows over the node table: row b adds tokens indptr[b]:indptr[b+1] to node leaves[b].
 *   leaves i32[B] in [0, X); indptr i32[B+1] from 0; parent (-1 at a root), start, length, first_page i32[X]; next_page i32[P];
 *   items i32[max_items,3], item_indptr i32[max_items+1], spans i32[max_spans,3] as tts_attend reads them;
 *   needed i32[2] = (items, spans): where it exceeds a capacity the rest is of no use, and the code is TTS_OK.
 * Bytes: the paths of the rows and the spans. */
TTS_API int tts_plan(int64_t B, int64_t X, int64_t P, const int32_t* leaves, const int32_t* indptr, const int32_t* parent,
                     const int32_t* start, const int32_t* length, const int32_t* first_page, const int32_t* next_page,
                     int64_t page_size, int64_t max_items, int64_t max_spans, int32_t* items, int32_t* item_indptr,
                     int32_t* spans, int32_t* needed);

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

/* Draw N tokens from R rows of logits, move the stop automaton, take the statistics.
 *   logits f32[R,V]; row i32[N] in [0, R); key, position i64[N]; temperature f32[N] >= 0 (0: greedy); top_k i32[N] (0: off);
 *   top_p f32[N] (1: off); min_p f32[N] (0: off); state i32[N], its low 24 bits in [0, A); next_state i32[A,V];
 *   token i64[N], logprob f32[N], next i32[N]; confidence, certainty f32[N], NaN unless with_statistics
 * Bytes: 4*V per distinct row among neighbours that share their filters, so the draws of one row stand together. */
TTS_API int tts_sample(int64_t R, int64_t V, int64_t N, int64_t A, const float* logits, const int32_t* row, const int64_t* key,
                       const int64_t* position, const float* temperature, const int32_t* top_k, const float* top_p,
                       const float* min_p, const int32_t* state, const int32_t* next_state, int with_statistics, int64_t* token,
                       float* logprob, int32_t* next, float* confidence, float* certainty);

#ifdef __cplusplus
}
#endif

#endif /* TTS_KERNELS_H */
