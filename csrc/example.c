/* A search step of a toy language model through the C ABI, without Python: a prompt is read, four branches are drawn from it, the
 * two best are kept and forked into two each, and every number is compared with plain loops over each branch's own tokens.
 *
 *   folder=$(python -c "import tts_kernels as t, os; print(os.path.dirname(t.get_library()))")
 *   cc -std=c99 csrc/example.c -I csrc "$folder/libtts_kernels.so" -Wl,-rpath,"$folder" -lm -o example && ./example
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

enum { V = 19, E = 24, H = 2, G = 1, D = 8, LABELS = 2 };            /* the model: one layer, no residual, no position */
enum { S = 4, P = 40, X = 16 };                                      /* the cache: pages of S tokens, and nodes */
enum { PROMPT = 6, WIDTH = 4, KEEP = 2, STEP = 5, MAX_TOKENS = 32 }; /* the search */
enum { Q = H * D, KV = G * D, QKV = Q + 2 * KV };
enum { MAX_ITEMS = 2 * WIDTH, MAX_SPANS = WIDTH * P };

#define PACKED(N, K) (((N) + 15) / 16 * (((K) + 31) / 32) * 512) /* elements of the packed form of a weight T[N,K] */

typedef struct {
  float embedding[V * E], qkv[QKV * E], head[V * Q], verifier[LABELS * Q];
  float packed_qkv[PACKED(QKV, E)], packed_head[PACKED(V, Q)];
} Model;

/* Pages of keys and values, and the tree of nodes that live in them. */
typedef struct {
  float keys[P * G * S * D], values[P * G * S * D];
  int32_t parent[X], refs[X], start[X], length[X], first_page[X], last_page[X], next_page[P];
  int32_t tokens[X][MAX_TOKENS]; /* of each node, for the comparison only */
  int32_t num_nodes, num_pages;
} Cache;

static void ok(int code) {
  if (code == TTS_OK) return;
  fprintf(stderr, "error %d: %s\n", code, tts_last_error());
  exit(1);
}

static void expect_near(const char* what, double got, double expected) {
  if (fabs(got - expected) <= 1e-5 * (1 + fabs(expected))) return;
  fprintf(stderr, "%s: got %.9g, expected %.9g\n", what, got, expected);
  exit(1);
}

static void fill(float* values, int count) {
  static uint32_t state = 1;
  for (int i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = (float)(state >> 8) / (1 << 23) - 1.0f;
  }
}

static void make_model(Model* m) {
  fill(m->embedding, V * E);
  fill(m->qkv, QKV * E);
  fill(m->head, V * Q);
  fill(m->verifier, LABELS * Q);
  ok(tts_pack(TTS_F32, QKV, E, m->qkv, E, m->packed_qkv));
  ok(tts_pack(TTS_F32, V, Q, m->head, Q, m->packed_head));
}

/* The slot of one more token of a node. */
static int64_t extend(Cache* c, int32_t node, int32_t token) {
  const int32_t length = c->length[node]++, offset = length % S;
  c->tokens[node][length] = token;
  if (offset == 0) {
    const int32_t page = c->num_pages++;
    if (length == 0)
      c->first_page[node] = page;
    else
      c->next_page[c->last_page[node]] = page;
    c->last_page[node] = page;
  }
  return (int64_t)c->last_page[node] * S + offset;
}

/* Reads the new tokens of `rows` nodes, `count` each, and gives for each token the attended hidden state and the logits. */
static void forward(const Model* m, Cache* c, int rows, const int32_t* leaves, int count, const int32_t* tokens, float* hidden,
                    float* logits) {
  enum { N = WIDTH * PROMPT };
  static float x[N * E], qkv[N * QKV], lse[N * H];
  int64_t slots[N];
  int32_t indptr[WIDTH + 1], items[MAX_ITEMS * 3], item_indptr[MAX_ITEMS + 1], spans[MAX_SPANS * 3], needed[2];
  const int n = rows * count;
  for (int row = 0; row <= rows; ++row) indptr[row] = row * count;
  for (int i = 0; i < n; ++i) {
    slots[i] = extend(c, leaves[i / count], tokens[i]);
    for (int e = 0; e < E; ++e) x[i * E + e] = m->embedding[tokens[i] * E + e];
  }
  ok(tts_linear(TTS_F32, n, QKV, E, x, E, m->packed_qkv, NULL, qkv));
  ok(tts_append(TTS_F32, n, G, D, P, S, qkv + Q, QKV, D, qkv + Q + KV, QKV, D, c->keys, G * S * D, S * D, D, c->values, G * S * D,
                S * D, D, slots));
  ok(tts_plan(rows, X, P, leaves, indptr, c->parent, c->start, c->length, c->first_page, c->next_page, S, MAX_ITEMS, MAX_SPANS,
              items, item_indptr, spans, needed));
  if (needed[0] > MAX_ITEMS || needed[1] > MAX_SPANS) exit(1);
  ok(tts_attend(TTS_F32, n, H, G, D, P, S, needed[1], needed[0], qkv, QKV, D, c->keys, G * S * D, S * D, D, c->values, G * S * D,
                S * D, D, spans, item_indptr, items, 1 / sqrt(D), hidden, lse));
  ok(tts_linear(TTS_F32, n, V, Q, hidden, Q, m->packed_head, NULL, logits));
}

/* ---- the same in plain loops */

static double dot(const float* a, const double* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/* The tokens from the root to the end of a node. */
static int path(const Cache* c, int32_t node, int32_t* tokens) {
  int count = c->parent[node] < 0 ? 0 : path(c, c->parent[node], tokens);
  for (int i = 0; i < c->length[node]; ++i) tokens[count++] = c->tokens[node][i];
  return count;
}

/* Rows first..first+count-1 of the projection of a token. */
static void project(const Model* m, int32_t token, int first, int count, double* to) {
  double x[E];
  for (int e = 0; e < E; ++e) x[e] = m->embedding[token * E + e];
  for (int i = 0; i < count; ++i) to[i] = dot(m->qkv + (first + i) * E, x, E);
}

/* What the last token of a node attends to. */
static void naive_hidden(const Model* m, const Cache* c, int32_t node, double* hidden) {
  int32_t tokens[X * MAX_TOKENS];
  const int count = path(c, node, tokens);
  double q[Q], key[D], value[D];
  project(m, tokens[count - 1], 0, Q, q);
  for (int h = 0; h < H; ++h) {
    const int g = h * G / H;
    double total = 0, sum[D] = {0};
    for (int t = 0; t < count; ++t) {
      double score = 0;
      project(m, tokens[t], Q + g * D, D, key);
      project(m, tokens[t], Q + KV + g * D, D, value);
      for (int d = 0; d < D; ++d) score += q[h * D + d] * key[d];
      const double weight = exp(score / sqrt(D));
      for (int d = 0; d < D; ++d) sum[d] += weight * value[d];
      total += weight;
    }
    for (int d = 0; d < D; ++d) hidden[h * D + d] = sum[d] / total;
  }
}

static void compare(const Model* m, const Cache* c, int32_t node, const float* hidden, const float* logits) {
  double expected[Q];
  naive_hidden(m, c, node, expected);
  for (int i = 0; i < Q; ++i) expect_near("attended hidden state", hidden[i], expected[i]);
  for (int v = 0; v < V; ++v) expect_near("logit", logits[v], dot(m->head + v * Q, expected, Q));
}

static double naive_logprob(const float* logits, int64_t token) {
  double total = 0;
  for (int v = 0; v < V; ++v) total += exp(logits[v]);
  return logits[token] - log(total);
}

static double naive_score(const Model* m, const float* hidden) {
  double logit[LABELS], x[Q];
  for (int i = 0; i < Q; ++i) x[i] = hidden[i];
  for (int label = 0; label < LABELS; ++label) logit[label] = dot(m->verifier + label * Q, x, Q);
  return 1 / (1 + exp(logit[0] - logit[1]));
}

/* ---- the search */

/* Draws the next token of each branch: branch i from row `row[i]` of the logits, keyed by its number, counted by its position. */
static void draw(const Cache* c, const int32_t* leaves, const float* logits, int rows, const int32_t* row, int32_t* tokens) {
  static const int32_t next_state[V] = {0}; /* a stop automaton of one state, which every token keeps */
  int64_t key[WIDTH], position[WIDTH], token[WIDTH];
  int32_t context[X * MAX_TOKENS];
  int32_t top_k[WIDTH] = {0}, state[WIDTH] = {0}, next[WIDTH];
  float temperature[WIDTH], top_p[WIDTH], min_p[WIDTH] = {0}, logprob[WIDTH], confidence[WIDTH], certainty[WIDTH];
  for (int i = 0; i < WIDTH; ++i) {
    key[i] = i;
    position[i] = path(c, leaves[i], context);
    temperature[i] = top_p[i] = 1;
  }
  ok(tts_sample(TTS_F32, rows, V, WIDTH, 1, logits, row, key, position, temperature, top_k, top_p, min_p, state, next_state, 0,
                token, logprob, next, confidence, certainty));
  for (int i = 0; i < WIDTH; ++i) {
    tokens[i] = (int32_t)token[i];
    expect_near("log-probability", logprob[i], naive_logprob(logits + row[i] * V, token[i]));
  }
}

/* Enters a child of each parent into the node table. */
static void fork_nodes(Cache* c, const int32_t* parents, int32_t* nodes) {
  for (int i = 0; i < WIDTH; ++i) nodes[i] = c->num_nodes++;
  ok(tts_fork(WIDTH, X, parents, nodes, c->parent, c->refs, c->start, c->length, c->first_page, c->last_page));
}

/* Reads STEP tokens of each branch, the first ones given and the others drawn; `hidden` and `logits` are those of the last. */
static void decode(const Model* m, Cache* c, const int32_t* leaves, int32_t* tokens, float* hidden, float* logits) {
  const int32_t own_row[WIDTH] = {0, 1, 2, 3};
  for (int i = 0; i < STEP; ++i) {
    if (i > 0) draw(c, leaves, logits, WIDTH, own_row, tokens);
    forward(m, c, WIDTH, leaves, 1, tokens, hidden, logits);
    for (int b = 0; b < WIDTH; ++b) compare(m, c, leaves[b], hidden + b * Q, logits + b * V);
  }
}

static void score_branches(const Model* m, const float* hidden, float* scores) {
  float before[WIDTH * 4] = {0}, running[WIDTH * 4];
  for (int b = 0; b < WIDTH; ++b) before[b * 4] = INFINITY;
  ok(tts_score(TTS_F32, WIDTH, Q, LABELS, hidden, Q, m->verifier, NULL, before, 1, TTS_ACTIVATION_SOFTMAX, scores, running));
  for (int b = 0; b < WIDTH; ++b) {
    expect_near("score", scores[b], naive_score(m, hidden + b * Q));
    expect_near("minimum of the scores", running[b * 4], scores[b]);
  }
}

/* The branch that each of WIDTH children continues: the KEEP best ones, with the same number of children each. */
static void select_best(const float* scores, int32_t* best) {
  const int32_t indptr[2] = {0, WIDTH}, total[1] = {WIDTH}, keep[1] = {KEEP};
  int32_t widths[WIDTH], counts[1];
  ok(tts_prune(WIDTH, 1, scores, indptr, total, keep, NULL, TTS_TOP, 1, WIDTH, widths, best, counts));
  for (int b = 0; b < WIDTH; ++b) {
    int better = 0;
    for (int other = 0; other < WIDTH; ++other) better += scores[other] > scores[b] || (scores[other] == scores[b] && other < b);
    expect_near("width", widths[b], better < KEEP ? WIDTH / KEEP : 0);
  }
}

static void print_branches(const Cache* c, const int32_t* nodes, const float* scores) {
  int32_t tokens[X * MAX_TOKENS];
  for (int b = 0; b < WIDTH; ++b) {
    const int count = path(c, nodes[b], tokens);
    printf("node %2d, score %.4f:", (int)nodes[b], scores[b]);
    for (int t = 0; t < count; ++t) printf(" %d", (int)tokens[t]);
    printf("\n");
  }
}

int main(void) {
  static Model model;
  static Cache cache = {.parent = {-1}, .refs = {1}, .num_nodes = 1};
  static float hidden[PROMPT * Q], logits[PROMPT * V];
  const int32_t prompt[PROMPT] = {3, 1, 4, 1, 5, 9}, root = 0, same_row[WIDTH] = {0};
  int32_t parents[WIDTH] = {0}, best[WIDTH], nodes[WIDTH], children[WIDTH], tokens[WIDTH];
  float scores[WIDTH];
  if (tts_abi_version() != TTS_ABI_VERSION) return 1;
  make_model(&model);

  forward(&model, &cache, 1, &root, PROMPT, prompt, hidden, logits);
  compare(&model, &cache, root, hidden + (PROMPT - 1) * Q, logits + (PROMPT - 1) * V);

  fork_nodes(&cache, parents, nodes);
  draw(&cache, nodes, logits + (PROMPT - 1) * V, 1, same_row, tokens);
  decode(&model, &cache, nodes, tokens, hidden, logits);
  score_branches(&model, hidden, scores);
  print_branches(&cache, nodes, scores);

  select_best(scores, best);
  for (int b = 0; b < WIDTH; ++b) parents[b] = nodes[best[b]];
  fork_nodes(&cache, parents, children);
  draw(&cache, children, logits, WIDTH, best, tokens);
  decode(&model, &cache, children, tokens, hidden, logits);
  score_branches(&model, hidden, scores);
  print_branches(&cache, children, scores);

  if (tts_fork(1, X, &(int32_t){X}, children, cache.parent, cache.refs, cache.start, cache.length, cache.first_page,
               cache.last_page) != TTS_INVALID_ARGUMENT)
    return 1;
  printf("refused: %s\n", tts_last_error());
  return 0;
}
