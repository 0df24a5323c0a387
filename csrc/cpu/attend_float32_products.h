// The memory of a task of attend in float32, its products with a tile of tokens, and its softmax. Of attend_float32.cpp alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/simd.h"
#include "common/sizes.h"

namespace tts {
namespace {

constexpr int64_t kTileTokens = 64;
constexpr int64_t kPhases = 4;  // partial sums of the values: hides the latency of dependent multiply-adds
constexpr float kLog2E = 1.44269504088896341f;

// Memory of one task. Rows are query heads: query r of the block and head j of the group are row r * group + j.
struct Workspace {
  float* queries;     // [rows, D]
  float* scores;      // [rows, context_capacity]
  float* sums;        // [rows, kPhases, padded D]
  float* tile;        // keys [kTileTokens / 16, D, 16] or values [kTileTokens, padded D]
  float* inverse;     // [rows] 1 / sum of the row's weights
  int64_t* position;  // [rows] tokens of the row's context before the item at hand
  int64_t* visible;   // [rows] tokens of the item at hand that the row sees

  static int64_t bytes(int64_t rows, int64_t dim, int64_t context_capacity) {
    const int64_t padded = round_up(dim, kLanes);
    return round_up(8 * 2 * rows + 4 * (rows * (dim + context_capacity + kPhases * padded + 1) + kTileTokens * padded), 64);
  }

  Workspace(void* memory, int64_t rows, int64_t dim, int64_t context_capacity) {
    const int64_t padded = round_up(dim, kLanes);
    tile = static_cast<float*>(memory);
    sums = tile + kTileTokens * padded;
    scores = sums + rows * kPhases * padded;
    position = reinterpret_cast<int64_t*>(scores + rows * context_capacity);
    visible = position + rows;
    queries = reinterpret_cast<float*>(visible + rows);
    inverse = queries + rows * dim;
  }
};

// scores[i][t] = scale * queries[i] @ key t for ROWS rows and VECTORS * W tokens; `keys` is [tokens / 16, dim, 16].
template <int W, int ROWS, int VECTORS>
TTS_INLINE void score_tile(const float* queries, const float* keys, int64_t dim, float scale, float* const* scores, int64_t t) {
  using Float = typename Vector<W>::Float;
  Float acc[ROWS][VECTORS] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Float key[VECTORS];
    for (int v = 0; v < VECTORS; ++v) key[v] = load<W>(keys + (v * W / kLanes * dim + d) * kLanes + v * W % kLanes);
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) acc[i][v] += queries[i * dim + d] * key[v];
  }
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECTORS; ++v) store(scores[i] + t + v * W, acc[i][v] * scale);
}

template <int W, int ROWS>
TTS_INLINE void score_rows(const float* queries, const float* keys, int64_t dim, int64_t tokens, float scale,
                           float* const* scores) {
  if constexpr (W == 16) {
    switch ((tokens + kLanes - 1) / kLanes) {
      case 1: return score_tile<W, ROWS, 1>(queries, keys, dim, scale, scores, 0);
      case 2: return score_tile<W, ROWS, 2>(queries, keys, dim, scale, scores, 0);
      case 3: return score_tile<W, ROWS, 3>(queries, keys, dim, scale, scores, 0);
      default: return score_tile<W, ROWS, 4>(queries, keys, dim, scale, scores, 0);
    }
  } else {
    for (int64_t t = 0; t < tokens; t += 2 * W)
      score_tile<W, ROWS, 2>(queries, keys + t / kLanes * dim * kLanes + t % kLanes, dim, scale, scores, t);
  }
}

// Scores of rows first..last-1 against a tile, each written at the row's position + `done`.
template <int W>
TTS_INLINE void score_block_for(const Workspace& ws, int64_t first, int64_t last, int64_t dim, int64_t capacity, int64_t done,
                                int64_t tokens, float scale) {
  for (int64_t row = first, rows; row < last; row += rows) {
    rows = row + 4 <= last ? 4 : 1;
    float* to[4];
    for (int64_t i = 0; i < rows; ++i) to[i] = ws.scores + (row + i) * capacity + ws.position[row + i] + done;
    if (rows == 4)
      score_rows<W, 4>(ws.queries + row * dim, ws.tile, dim, tokens, scale, to);
    else
      score_rows<W, 1>(ws.queries + row * dim, ws.tile, dim, tokens, scale, to);
  }
}

TTS_PER_WIDTH(score_block,
              (const Workspace& ws, int64_t first, int64_t last, int64_t dim, int64_t capacity, int64_t done, int64_t tokens,
               float scale),
              (ws, first, last, dim, capacity, done, tokens, scale))

// Turns `count` > 0 scores into weights e^(score - maximum); returns the log of the sum of e^score, and 1 / sum of the weights
// through `inverse`.
TTS_CLONES float softmax_row(float* scores, int64_t count, float* inverse) {
  const int64_t whole = (count - 1) / kLanes * kLanes;  // what comes before the last vector
  F32x16 most = keep_first(load<kLanes>(scores + whole), count - whole, -INFINITY), sum = {};
  store(scores + whole, most);
  for (int64_t i = 0; i < whole; i += kLanes) most = larger(load<kLanes>(scores + i), most);
  const float maximum = max_lanes(most);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 weight = exp2((load<kLanes>(scores + i) - maximum) * kLog2E);
    sum += weight;
    store(scores + i, weight);
  }
  const float total = sum_lanes(sum);
  *inverse = 1.0f / total;
  return maximum + std::log(total);
}

// sums[i][(position[i] + t) % 4] += weights[i][t] * values[t] for ROWS rows and `tokens` tokens.
template <int W, int ROWS>
TTS_INLINE void weigh_rows(const float* const* weights, const float* values, int64_t tokens, int64_t padded, float* const* sums,
                           const int64_t* position) {
  for (int64_t d = 0; d < padded; d += W) {
    typename Vector<W>::Float acc[ROWS][kPhases];
    const auto sum = [&](int i, int64_t phase)
                         TTS_INLINE_LAMBDA { return sums[i] + (position[i] + phase) % kPhases * padded + d; };
    for (int i = 0; i < ROWS; ++i)
      for (int phase = 0; phase < kPhases; ++phase) acc[i][phase] = load<W>(sum(i, phase));
    int64_t t = 0;
    for (; t + kPhases <= tokens; t += kPhases)
      for (int phase = 0; phase < kPhases; ++phase) {
        const auto value = load<W>(values + (t + phase) * padded + d);
        for (int i = 0; i < ROWS; ++i) acc[i][phase] += weights[i][t + phase] * value;
      }
    for (int phase = 0; phase < kPhases - 1; ++phase)
      if (t + phase < tokens) {
        const auto value = load<W>(values + (t + phase) * padded + d);
        for (int i = 0; i < ROWS; ++i) acc[i][phase] += weights[i][t + phase] * value;
      }
    for (int i = 0; i < ROWS; ++i)
      for (int phase = 0; phase < kPhases; ++phase) store(sum(i, phase), acc[i][phase]);
  }
}

// Adds `values` to rows first..last-1, to each as many as it sees: `done` tokens of the item came before. Rows go together, as
// many as leave their sums in registers, where they see the same number.
template <int W>
TTS_INLINE void weigh_block_for(const Workspace& ws, const float* values, int64_t first, int64_t last, int64_t padded,
                                int64_t capacity, int64_t done, int64_t tokens) {
  constexpr int kRows = W == 16 ? 4 : 2;
  const auto shown = [&](int64_t row)
                         TTS_INLINE_LAMBDA { return std::max<int64_t>(0, std::min(tokens, ws.visible[row] - done)); };
  for (int64_t row = first, rows; row < last; row += rows) {
    rows = row + kRows <= last && shown(row) == shown(row + kRows - 1) ? kRows : 1;  // within an item `visible` never falls
    const float* weights[kRows];
    float* sums[kRows];
    int64_t position[kRows];
    for (int64_t i = 0; i < rows; ++i) {
      position[i] = ws.position[row + i] + done;
      weights[i] = ws.scores + (row + i) * capacity + position[i];
      sums[i] = ws.sums + (row + i) * kPhases * padded;
    }
    if (rows == kRows)
      weigh_rows<W, kRows>(weights, values, shown(row), padded, sums, position);
    else
      weigh_rows<W, 1>(weights, values, shown(row), padded, sums, position);
  }
}

TTS_PER_WIDTH(weigh_block,
              (const Workspace& ws, const float* values, int64_t first, int64_t last, int64_t padded, int64_t capacity,
               int64_t done, int64_t tokens),
              (ws, values, first, last, padded, capacity, done, tokens))

}  // namespace
}  // namespace tts
