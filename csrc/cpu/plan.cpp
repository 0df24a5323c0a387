// plan: the work items of attend, from the node table and the leaf of each row.
//
// One pass over the rows with a stack of open nodes, the path of the row at hand. A row walks up from its leaf to the first node
// that is open already; what the row before it does not share is closed into items. Each node of a row's own part is visited
// once and each span written once; nothing of the rest of the pool is read. Invariant: the stack is the path from the root to the
// row's leaf, each node with the first row of the run of rows that shares it.
#include <algorithm>
#include <vector>

#include "common/check.h"
#include "common/threads.h"
#include "cpu/work_items.h"

namespace tts {
namespace {

struct Nodes {
  int64_t X, P, page_size;
  const int32_t *parent, *start, *length, *first_page, *next_page;
};

struct OpenNode {
  int32_t node;
  int32_t row;  // the first row of the run under it
};

class Planner {
 public:
  void run(const Nodes& table, int64_t B, const int32_t* leaves, const int32_t* indptr) {
    parent_ = table.parent;
    indptr_ = indptr;
    open_.clear();
    nodes.clear();
    items.start(B);
    if (static_cast<int64_t>(depth_.size()) < table.X) depth_.resize(static_cast<size_t>(table.X), 0);
    for (int64_t row = 0; row < B; ++row) {
      const size_t shared = walk_up(leaves[row], table.X);
      close(shared, row);
      for (size_t i = own_.size(); i-- > 0;) open(own_[i], static_cast<int32_t>(row));
    }
    close(0, B);
  }

  WorkItems items;             // first and last are into `nodes`
  std::vector<int32_t> nodes;  // of each item, leaf side first

 private:
  // Fills `own_` with the nodes from the leaf up to the first open one, and returns how many open nodes the row shares. The leaf
  // of either row is never shared: its item is causal and so its row's alone.
  size_t walk_up(int32_t leaf, int64_t X) {
    own_.assign(1, leaf);
    for (int32_t node = parent_[leaf]; node != -1; node = parent_[node]) {
      check_range("plan: values of parent", node, 0, X);
      const size_t depth = static_cast<size_t>(depth_[static_cast<size_t>(node)]);
      if (depth + 1 < open_.size() && open_[depth].node == node) return depth + 1;
      own_.push_back(node);
      if (static_cast<int64_t>(own_.size()) > X) throw std::invalid_argument("plan: parent has a cycle");
    }
    return 0;
  }

  void open(int32_t node, int32_t row) {
    depth_[static_cast<size_t>(node)] = static_cast<int32_t>(open_.size());
    open_.push_back({node, row});
  }

  // Pops the stack down to `depth`; levels that opened together close together and become one item.
  void close(size_t depth, int64_t end_row) {
    int32_t is_causal = 1;
    while (open_.size() > depth) {
      const int32_t first_node = static_cast<int32_t>(nodes.size()), q0 = indptr_[open_.back().row], q1 = indptr_[end_row];
      int32_t row = 0;
      for (; open_.size() > depth && indptr_[open_.back().row] == q0; open_.pop_back()) {
        nodes.push_back(open_.back().node);
        row = open_.back().row;
      }
      if (q0 < q1) items.close({q0, q1, is_causal, row, first_node, static_cast<int32_t>(nodes.size()), -1});
      is_causal = 0;
    }
  }

  const int32_t *parent_ = nullptr, *indptr_ = nullptr;
  std::vector<int32_t> own_;
  std::vector<OpenNode> open_;
  std::vector<int32_t> depth_;  // per node, its depth when it was last opened: true if the stack has it there
};

// Writes (page, first slot, count) for each page of a node where there is room, and returns how many there are.
int64_t write_spans(const Nodes& t, int32_t node, int32_t* spans, int64_t room) {
  int64_t page = t.first_page[node], first = t.start[node], left = t.length[node], count = 0;
  check_range("plan: values of start", first, 0, t.page_size);
  check_range("plan: values of length", left, 0, INT32_MAX);
  for (; left > 0; page = t.next_page[page], first = 0, ++count) {
    check_range("plan: a page of a node", page, 0, t.P);
    const int64_t tokens = std::min(left, t.page_size - first);
    if (count < room) write_span(spans + count * 3, page, first, tokens);
    left -= tokens;
  }
  return count;
}

}  // namespace
}  // namespace tts

int tts_plan(int64_t B, int64_t X, int64_t P, const int32_t* leaves, const int32_t* indptr, const int32_t* parent,
             const int32_t* start, const int32_t* length, const int32_t* first_page, const int32_t* next_page, int64_t page_size,
             int64_t max_items, int64_t max_spans, int32_t* items, int32_t* item_indptr, int32_t* spans, int32_t* needed) {
  using namespace tts;
  return guarded([&] {
    check_range("plan: page_size", page_size, 1, INT32_MAX);
    check_sizes("plan: items and spans", {max_items, max_spans});
    check_values("plan: values of leaves", leaves, B, 0, X);
    check_indptr("plan: values of indptr", indptr, B, INT32_MAX);
    Planner& planner = thread_owned<Planner>();
    const Nodes table{X, P, page_size, parent, start, length, first_page, next_page};
    planner.run(table, B, leaves, indptr);
    planner.items.write({max_items, max_spans, items, item_indptr, spans, needed},
                        [&](const WorkItem& item, int32_t* to, int64_t room) {
                          int64_t count = 0;
                          for (int32_t n = item.last; n-- > item.first;)
                            count += write_spans(table, planner.nodes[static_cast<size_t>(n)], to + count * 3, room - count);
                          return count;
                        });
  });
}
