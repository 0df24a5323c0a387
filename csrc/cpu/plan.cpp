// plan: the work items of attend, from the node table and the leaf of each row.
//
// One pass over the rows with a stack of open nodes, the path of the row at hand: it reads the paths and the spans, O(their
// length), and nothing of the rest of the pool. Invariant: the stack is the path from the root to the row's leaf, with the first
// row of the run of rows that has shared the node; what a row does not share with the one before it is closed into items.
#include <algorithm>
#include <vector>

#include "common/check.h"

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

struct ClosedItem {
  int32_t q0, q1, is_causal;
  int32_t first_node, last_node;  // into Planner::nodes, leaf side first
  int32_t next;                   // the item closed before it under the same first row, -1 at the end
};

class Planner {
 public:
  void run(const Nodes& table, int64_t B, const int32_t* leaves, const int32_t* indptr) {
    table_ = &table;
    indptr_ = indptr;
    open_.clear();
    items.clear();
    nodes.clear();
    newest.assign(static_cast<size_t>(B), -1);
    for (int64_t row = 0; row < B; ++row) {
      read_path(leaves[row]);
      close(shared_depth(), row);
      for (size_t depth = open_.size(); depth < path_.size(); ++depth)
        open_.push_back({path_[path_.size() - 1 - depth], static_cast<int32_t>(row)});
    }
    close(0, B);
  }

  std::vector<ClosedItem> items;
  std::vector<int32_t> nodes;
  std::vector<int32_t> newest;  // per row, the item closed last among those that begin with it: the one nearest to the root

 private:
  // The row's nodes from leaf to root.
  void read_path(int32_t leaf) {
    path_.clear();
    for (int32_t node = leaf; node != -1; node = table_->parent[node]) {
      check_range("plan: values of parent", node, 0, table_->X);
      path_.push_back(node);
      if (static_cast<int64_t>(path_.size()) > table_->X) throw std::invalid_argument("plan: parent has a cycle");
    }
  }

  // The open nodes that the path shares; never a leaf of either row, whose item is causal and so its row's alone.
  size_t shared_depth() const {
    const size_t most = open_.empty() ? 0 : std::min(path_.size(), open_.size()) - 1;
    size_t depth = 0;
    while (depth < most && open_[depth].node == path_[path_.size() - 1 - depth]) ++depth;
    return depth;
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
      if (q0 < q1) {
        items.push_back({q0, q1, is_causal, first_node, static_cast<int32_t>(nodes.size()), newest[static_cast<size_t>(row)]});
        newest[static_cast<size_t>(row)] = static_cast<int32_t>(items.size()) - 1;
      }
      is_causal = 0;
    }
  }

  const Nodes* table_ = nullptr;
  const int32_t* indptr_ = nullptr;
  std::vector<int32_t> path_;
  std::vector<OpenNode> open_;
};

int64_t count_spans(const Nodes& t, int32_t node) {
  const int64_t start = t.start[node], length = t.length[node];
  check_range("plan: values of start", start, 0, t.page_size);
  check_range("plan: values of length", length, 0, INT32_MAX);
  return length == 0 ? 0 : (start + length + t.page_size - 1) / t.page_size;
}

// Writes (page, first slot, count) for each page of a node and returns the end of the spans.
int32_t* write_spans(const Nodes& t, int32_t node, int32_t* span) {
  int64_t page = t.first_page[node], first = t.start[node], left = t.length[node];
  for (; left > 0; page = t.next_page[page], first = 0, span += 3) {
    check_range("plan: a page of a node", page, 0, t.P);
    const int64_t count = std::min(left, t.page_size - first);
    span[0] = static_cast<int32_t>(page);
    span[1] = static_cast<int32_t>(first);
    span[2] = static_cast<int32_t>(count);
    left -= count;
  }
  return span;
}

}  // namespace
}  // namespace tts

int tts_plan(int64_t B, int64_t X, int64_t P, const int32_t* leaves, const int32_t* indptr, const int32_t* parent,
             const int32_t* start, const int32_t* length, const int32_t* first_page, const int32_t* next_page, int64_t page_size,
             int64_t max_items, int64_t max_spans, int32_t* items, int32_t* item_indptr, int32_t* spans, int32_t* needed) {
  using namespace tts;
  return guarded([&] {
    check_range("plan: page_size", page_size, 1, INT32_MAX);
    check_values("plan: values of leaves", leaves, B, 0, X);
    check_indptr("plan: values of indptr", indptr, B, INT32_MAX);
    thread_local Planner planner;
    const Nodes table{X, P, page_size, parent, start, length, first_page, next_page};
    planner.run(table, B, leaves, indptr);
    int64_t num_spans = 0;
    for (const ClosedItem& item : planner.items)
      for (int32_t i = item.first_node; i < item.last_node; ++i)
        num_spans += count_spans(table, planner.nodes[static_cast<size_t>(i)]);
    check_range("plan: number of spans", num_spans, 0, INT32_MAX);
    needed[0] = static_cast<int32_t>(planner.items.size());
    needed[1] = static_cast<int32_t>(num_spans);
    if (needed[0] > max_items || num_spans > max_spans) return;
    int32_t* span = spans;
    item_indptr[0] = 0;
    for (int64_t row = 0, w = 0; row < B; ++row)
      for (int32_t i = planner.newest[static_cast<size_t>(row)]; i != -1; i = planner.items[static_cast<size_t>(i)].next, ++w) {
        const ClosedItem& item = planner.items[static_cast<size_t>(i)];
        items[w * 3] = item.q0;
        items[w * 3 + 1] = item.q1;
        items[w * 3 + 2] = item.is_causal;
        for (int32_t n = item.last_node; n-- > item.first_node;)
          span = write_spans(table, planner.nodes[static_cast<size_t>(n)], span);
        item_indptr[w + 1] = static_cast<int32_t>((span - spans) / 3);
      }
  });
}
