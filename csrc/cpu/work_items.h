// The work items of attend while a plan is made: closed leaf side first, written sorted by q0, outer before inner.
#pragma once

#include <vector>

#include "common/check.h"

namespace tts {

struct WorkItem {
  int32_t q0, q1, is_causal;
  int32_t row;          // the first of its rows
  int32_t first, last;  // what it reads, as its planner numbers that
  int32_t next;         // the item closed before it under the same first row, -1 at the end
};

// Where a plan goes, and the room there is.
struct PlanOutputs {
  int64_t max_items, max_spans;
  int32_t *items, *item_indptr, *spans, *needed;
};

class WorkItems {
 public:
  void start(int64_t num_rows) {
    items_.clear();
    newest_.assign(static_cast<size_t>(num_rows), -1);
  }

  // Of two items with the same first row the inner one must come first.
  void close(WorkItem item) {
    int32_t& newest = newest_[static_cast<size_t>(item.row)];
    item.next = newest;
    newest = static_cast<int32_t>(items_.size());
    items_.push_back(item);
  }

  // `write_spans(item, to, room)` writes the spans of an item where there is room, and returns how many there are.
  template <class WriteSpans>
  void write(const PlanOutputs& out, WriteSpans&& write_spans) const {
    const bool has_room = static_cast<int64_t>(items_.size()) <= out.max_items;
    int64_t w = 0, num_spans = 0;
    out.item_indptr[0] = 0;
    for (int32_t newest : newest_)
      for (int32_t i = newest; i != -1; i = items_[static_cast<size_t>(i)].next, ++w) {
        const WorkItem& item = items_[static_cast<size_t>(i)];
        num_spans += write_spans(item, out.spans + num_spans * 3, out.max_spans - num_spans);
        check_range("plan: number of spans", num_spans, 0, INT32_MAX);
        if (!has_room) continue;
        out.items[w * 3] = item.q0;
        out.items[w * 3 + 1] = item.q1;
        out.items[w * 3 + 2] = item.is_causal;
        out.item_indptr[w + 1] = static_cast<int32_t>(num_spans);
      }
    out.needed[0] = static_cast<int32_t>(items_.size());
    out.needed[1] = static_cast<int32_t>(num_spans);
  }

 private:
  std::vector<WorkItem> items_;
  std::vector<int32_t> newest_;  // per row, the item closed last among those that begin with it: the one nearest to the root
};

inline void write_span(int32_t* span, int64_t page, int64_t first, int64_t count) {
  span[0] = static_cast<int32_t>(page);
  span[1] = static_cast<int32_t>(first);
  span[2] = static_cast<int32_t>(count);
}

}  // namespace tts
