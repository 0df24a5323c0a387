// fork: enters free nodes into the node table as empty children of their parents; no KV byte is copied.
//
// One pass over the children: it writes 7 words each. Invariant: new nodes are distinct and free, so their own columns are
// written once; a parent's references grow by its number of children.
#include "common/check.h"

int tts_fork(int64_t C, int64_t X, const int32_t* parents, const int32_t* nodes, int32_t* parent, int32_t* refs, int32_t* start,
             int32_t* length, int32_t* first_page, int32_t* last_page) {
  using namespace tts;
  return guarded([&] {
    check_values("fork: values of parents", parents, C, 0, X);
    check_values("fork: values of nodes", nodes, C, 0, X);
    for (int64_t c = 0; c < C; ++c) {
      const int32_t node = nodes[c];
      parent[node] = parents[c];
      refs[node] = 1;
      start[node] = length[node] = 0;
      first_page[node] = last_page[node] = -1;
    }
    for (int64_t c = 0; c < C; ++c) ++refs[parents[c]];
  });
}
