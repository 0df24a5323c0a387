// decoder: the ops of the layers of a Llama-like decoder one after the other, with the bits that they give one by one.
//
// What one call saves is the host's work between the ops, whose code and data the weights drive out of the caches. Except in
// attend the rows go through in chunks, so that the scratch memory of an MLP is bounded.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/isa.h"
#include "common/sizes.h"
#include "common/threads.h"
#include "cpu/attend.h"
#include "cpu/elementwise.h"
#include "cpu/linear.h"

namespace tts {
namespace {

constexpr int64_t kChunk = 256;             // rows for which linear reads a weight once
constexpr int64_t kParallelRows = 1 << 15;  // elements below which a second thread costs more than it saves

struct LayerPages {
  void* data;
  int64_t layer, page, head, slot;
};

// The whole problem, and then each layer of it: `hidden` is what comes in, `out` what comes out.
struct Layer {
  int dtype;
  int64_t N, E, F, H, G, D, R, P, S, num_spans, W;
  const void* hidden;
  const void* cos;
  int64_t cos_stride;
  const void* sin;
  int64_t sin_stride;
  LayerPages keys, values;
  const int64_t* slots;
  const int32_t *spans, *item_indptr, *items;
  double scale, eps;
  tts_decoder_weights weights;
  void* out;

  int64_t columns() const { return (H + 2 * G) * D; }
};

// What lies between the ops: `rows` of one chunk, `heads` and `attended` of all rows.
struct Between {
  char *heads, *attended, *rows, *gate_up, *activated;
  float* lse;
};

// Whether gate_up can end with silu_and_mul, in one pass.
bool is_gated(const Layer& p) { return p.dtype == TTS_BF16 && has_bf16_tiles() && p.F % kPanelColumns == 0; }

// The scratch memory of this op; that of the ops that it calls is another.
struct LayerScratch : Scratch {};

Between take_scratch(const Layer& p) {
  const int64_t size = element_size(p.dtype), chunk = std::min(p.N, kChunk);
  const int64_t bytes[] = {p.N * p.columns() * size, p.N * p.H * p.D * size,
                           chunk * p.E * size,       is_gated(p) ? 0 : chunk * 2 * p.F * size,
                           chunk * p.F * size,       p.N * p.H * 4};
  int64_t total = 0;
  for (int64_t part : bytes) total += round_up(part, 64);
  char* at = static_cast<char*>(thread_owned<LayerScratch>().take(total));
  const auto next = [&](int64_t part) { return std::exchange(at, at + round_up(part, 64)); };
  Between b{};
  b.heads = next(bytes[0]), b.attended = next(bytes[1]), b.rows = next(bytes[2]);
  b.gate_up = next(bytes[3]), b.activated = next(bytes[4]), b.lse = reinterpret_cast<float*>(next(bytes[5]));
  return b;
}

// The error of an op that was called, as one of this op.
void pass_on(int code) {
  if (code == TTS_INVALID_ARGUMENT) throw std::invalid_argument(tts_last_error());
  if (code == TTS_OUT_OF_MEMORY) throw std::bad_alloc();
  if (code != TTS_OK) throw std::runtime_error(tts_last_error());
}

// The rows of a tensor from `row` on.
const void* from_row(const Layer& p, const void* tensor, int64_t row, int64_t stride) {
  return tensor == nullptr ? nullptr : static_cast<const char*>(tensor) + row * stride * element_size(p.dtype);
}
void* from_row(const Layer& p, void* tensor, int64_t row, int64_t stride) {
  return static_cast<char*>(tensor) + row * stride * element_size(p.dtype);
}

// Layer l of the problem.
Layer layer_at(const Layer& all, int64_t l) {
  const auto moved = [&](const void*& tensor, int64_t elements) { tensor = from_row(all, tensor, l, elements); };
  Layer p = all;
  tts_decoder_weights& w = p.weights;
  moved(w.input_norm, p.E), moved(w.post_norm, p.E), moved(w.q_norm, p.D), moved(w.k_norm, p.D);
  moved(w.qkv, packed_size(p.columns(), p.E)), moved(w.qkv_bias, p.columns());
  moved(w.o, packed_size(p.E, p.H * p.D)), moved(w.o_bias, p.E);
  moved(w.gate_up, packed_size(2 * p.F, p.E)), moved(w.gate_up_bias, 2 * p.F);
  moved(w.down, packed_size(p.E, p.F)), moved(w.down_bias, p.E);
  p.keys.data = from_row(all, p.keys.data, l, p.keys.layer);
  p.values.data = from_row(all, p.values.data, l, p.values.layer);
  if (l > 0) p.hidden = p.out;
  return p;
}

template <class T>
TTS_CLONES void add(const T* a, const T* b, int64_t count, T* out) {
  combine(a, b, count, out, [](F32x16 one, F32x16 other) TTS_INLINE_LAMBDA { return one + other; });
}

void add_rows(const Layer& p, const void* a, const void* b, int64_t rows, void* out) {
  const int64_t count = rows * p.E, tasks = count > kParallelRows ? std::min<int64_t>(max_threads(), rows) : 1;
  with_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(tasks)) if (tasks > 1)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t begin = rows * task / tasks * p.E, end = rows * (task + 1) / tasks * p.E;
      add(static_cast<const T*>(a) + begin, static_cast<const T*>(b) + begin, end - begin, static_cast<T*>(out) + begin);
    }
  });
}

// Qwen 3's norms of queries and keys, in place: rms_norm reads a row to its end before it writes it.
void norm_heads(const Layer& p, void* heads, int64_t rows) {
  const auto norm = [&](int64_t row, int64_t first, int64_t count, const void* weight) {
    void* x = from_row(p, heads, row * (p.H + 2 * p.G) + first, p.D);
    return weight == nullptr ? TTS_OK : tts_rms_norm(p.dtype, count, p.D, x, p.D, weight, p.eps, x);
  };
  int code = TTS_OK;
#pragma omp parallel for schedule(static) reduction(max : code) if (rows * p.columns() > kParallelRows)
  for (int64_t row = 0; row < rows; ++row)
    code = std::max({code, norm(row, 0, p.H, p.weights.q_norm), norm(row, p.H, p.G, p.weights.k_norm)});
  pass_on(code);
}

// Rows m.. of `heads`: queries, keys and values, and the keys and values into their slots.
void project(const Layer& p, const Between& b, int64_t m, int64_t rows) {
  const tts_decoder_weights& w = p.weights;
  const int64_t C = p.columns(), turned = p.H + p.G;
  void* heads = from_row(p, b.heads, m, C);
  const void *k = from_row(p, heads, p.H, p.D), *v = from_row(p, heads, turned, p.D);
  pass_on(tts_rms_norm(p.dtype, rows, p.E, from_row(p, p.hidden, m, p.E), p.E, w.input_norm, p.eps, b.rows));
  pass_on(tts_linear(p.dtype, rows, C, p.E, b.rows, p.E, w.qkv, w.qkv_bias, heads));
  if (w.q_norm != nullptr || w.k_norm != nullptr) norm_heads(p, heads, rows);
  pass_on(tts_rope(p.dtype, rows, turned, p.R, heads, C, p.D, from_row(p, p.cos, m, p.cos_stride), p.cos_stride,
                   from_row(p, p.sin, m, p.sin_stride), p.sin_stride));
  pass_on(tts_append(p.dtype, rows, p.G, p.D, p.P, p.S, k, C, p.D, v, C, p.D, p.keys.data, p.keys.page, p.keys.head, p.keys.slot,
                     p.values.data, p.values.page, p.values.head, p.values.slot, p.slots + m));
}

void attend(const Layer& p, const Between& b) {
  pass_on(tts_attend(p.dtype, p.N, p.H, p.G, p.D, p.P, p.S, p.num_spans, p.W, b.heads, p.columns(), p.D, p.keys.data, p.keys.page,
                     p.keys.head, p.keys.slot, p.values.data, p.values.page, p.values.head, p.values.slot, p.spans, p.item_indptr,
                     p.items, p.scale, b.attended, b.lse));
}

// silu_and_mul of the gates and ups of `rows` rows.
void activate(const Layer& p, const Between& b, int64_t rows) {
  const tts_decoder_weights& w = p.weights;
  if (is_gated(p)) return linear_in_tiles({rows, 2 * p.F, p.E, p.E, b.rows, w.gate_up, w.gate_up_bias, b.activated, true});
  pass_on(tts_linear(p.dtype, rows, 2 * p.F, p.E, b.rows, p.E, w.gate_up, w.gate_up_bias, b.gate_up));
  pass_on(tts_silu_and_mul(p.dtype, rows, p.F, b.gate_up, 2 * p.F, b.activated));
}

// Rows m.. of `out`: what attention and the MLP add to the hidden states.
void finish(const Layer& p, const Between& b, int64_t m, int64_t rows) {
  const tts_decoder_weights& w = p.weights;
  const int64_t A = p.H * p.D;
  void* out = from_row(p, p.out, m, p.E);
  pass_on(tts_linear(p.dtype, rows, p.E, A, from_row(p, b.attended, m, A), A, w.o, w.o_bias, b.rows));
  add_rows(p, from_row(p, p.hidden, m, p.E), b.rows, rows, out);
  pass_on(tts_rms_norm(p.dtype, rows, p.E, out, p.E, w.post_norm, p.eps, b.rows));
  activate(p, b, rows);
  pass_on(tts_linear(p.dtype, rows, p.E, p.F, b.activated, p.F, w.down, w.down_bias, b.rows));
  add_rows(p, out, b.rows, rows, out);
}

}  // namespace
}  // namespace tts

int tts_decoder(int dtype, int64_t L, int64_t N, int64_t E, int64_t F, int64_t H, int64_t G, int64_t D, int64_t R, int64_t P,
                int64_t S, int64_t num_spans, int64_t W, const void* hidden, const void* cos, int64_t cos_stride, const void* sin,
                int64_t sin_stride, void* keys, int64_t keys_layer, int64_t keys_page, int64_t keys_head, int64_t keys_slot,
                void* values, int64_t values_layer, int64_t values_page, int64_t values_head, int64_t values_slot,
                const int64_t* slots, const int32_t* spans, const int32_t* item_indptr, const int32_t* items, double scale,
                double eps, const tts_decoder_weights* weights, void* out) {
  using namespace tts;
  return guarded([&] {
    check_range("decoder: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("decoder: hidden", {N, E});
    check_sizes("decoder: heads", {N, std::max(H, G), 3, D});
    check_sizes("decoder: weights", {L, E, 2, F});
    check_range("decoder: R", R, 0, D + 1);
    check(R % 2 == 0, "decoder: R must be even, got " + std::to_string(R));
    check(D % 8 == 0 && D <= kMaxHeadDim, "decoder: head dim must be a multiple of 8 up to 256, got " + std::to_string(D));
    const Layer all{dtype,
                    N,
                    E,
                    F,
                    H,
                    G,
                    D,
                    R,
                    P,
                    S,
                    num_spans,
                    W,
                    hidden,
                    cos,
                    cos_stride,
                    sin,
                    sin_stride,
                    {keys, keys_layer, keys_page, keys_head, keys_slot},
                    {values, values_layer, values_page, values_head, values_slot},
                    slots,
                    spans,
                    item_indptr,
                    items,
                    scale,
                    eps,
                    *weights,
                    out};
    check_values("decoder: values of slots", slots, N, -1, P * S);
    if (L == 0) std::copy_n(static_cast<const char*>(hidden), N * E * element_size(dtype), static_cast<char*>(out));
    const Between between = take_scratch(all);
    for (int64_t l = 0; l < L; ++l) {
      const Layer p = layer_at(all, l);
      for (int64_t m = 0; m < N; m += kChunk) project(p, between, m, std::min(kChunk, N - m));
      attend(p, between);
      for (int64_t m = 0; m < N; m += kChunk) finish(p, between, m, std::min(kChunk, N - m));
    }
  });
}
