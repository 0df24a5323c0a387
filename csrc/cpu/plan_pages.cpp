// plan_pages: the work items of attend, from one flat page table per row.
//
// One pass over the rows with a stack of open runs of columns: each run is shared by the rows from its first one to the row at
// hand. A row is compared with the one before it, column by column, up to the first that differs: what lies behind is closed into
// items. Each entry of a table is read once or twice. Invariant: depths on the stack rise, and the topmost run ends with the row.
#include <algorithm>
#include <vector>

#include "common/check.h"
#include "common/threads.h"
#include "cpu/work_items.h"

namespace tts {
namespace {

struct PageTables {
  int64_t page_size;
  const int32_t* table;
  int64_t stride;
  const int32_t *context, *indptr;

  const int32_t* row(int64_t b) const { return table + b * stride; }
  int64_t num_pages(int64_t b) const { return (context[b] + page_size - 1) / page_size; }

  // The full pages before the new tokens; at least one page is the row's own.
  int64_t num_shareable(int64_t b) const { return (context[b] - (indptr[b + 1] - indptr[b])) / page_size; }
};

struct OpenRun {
  int32_t row;    // the first that shares it
  int32_t depth;  // columns up to its end
};

class PagePlanner {
 public:
  void run(const PageTables& tables, int64_t B) {
    items.start(B);
    open_.clear();
    int64_t before = -1;
    for (int64_t row = 0; row < B; ++row) {
      if (tables.indptr[row] == tables.indptr[row + 1]) continue;
      close(tables, before < 0 ? 0 : num_shared(tables, before, row), row);
      open_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(tables.num_pages(row))});
      before = row;
    }
    close(tables, 0, B);
  }

  WorkItems items;  // first and last are columns of the row's table

 private:
  static int64_t num_shared(const PageTables& tables, int64_t a, int64_t b) {
    const int32_t* pages = tables.row(a);
    const int64_t most = std::min(tables.num_shareable(a), tables.num_shareable(b));
    return std::mismatch(pages, pages + most, tables.row(b)).first - pages;
  }

  // Closes what lies behind column `depth`. A run that reaches over it stays open up to there.
  void close(const PageTables& tables, int64_t depth, int64_t end_row) {
    int32_t is_causal = 1;
    while (!open_.empty() && open_.back().depth > depth) {
      const OpenRun run = open_.back();
      open_.pop_back();
      const int32_t below = open_.empty() ? 0 : open_.back().depth, first = std::max(static_cast<int32_t>(depth), below);
      items.close({tables.indptr[run.row], tables.indptr[end_row], is_causal, run.row, first, run.depth, -1});
      if (below < first) open_.push_back({run.row, first});
      is_causal = 0;
    }
  }

  std::vector<OpenRun> open_;
};

int64_t write_spans(const PageTables& tables, const WorkItem& item, int32_t* spans, int64_t room) {
  const int32_t* pages = tables.row(item.row);
  const int64_t count = item.last - item.first;
  for (int64_t i = item.first; i < item.last; ++i) check_range("plan_pages: values of page_table", pages[i], 0, INT32_MAX);
  for (int64_t i = 0; i < std::min(count, room); ++i)
    write_span(spans + i * 3, pages[item.first + i], 0,
               std::min(tables.page_size, tables.context[item.row] - (item.first + i) * tables.page_size));
  return count;
}

}  // namespace
}  // namespace tts

int tts_plan_pages(int64_t B, int64_t M, const int32_t* page_table, int64_t page_table_stride, const int32_t* context,
                   const int32_t* indptr, int64_t page_size, int64_t max_items, int64_t max_spans, int32_t* items,
                   int32_t* item_indptr, int32_t* spans, int32_t* needed) {
  using namespace tts;
  return guarded([&] {
    check_range("plan_pages: page_size", page_size, 1, INT32_MAX);
    check_sizes("plan_pages: page_table", {B, M, page_size});
    check_sizes("plan_pages: items and spans", {max_items, max_spans});
    check_indptr("plan_pages: values of indptr", indptr, B, INT32_MAX);
    for (int64_t b = 0; b < B; ++b)
      check_range("plan_pages: values of context", context[b], indptr[b + 1] - indptr[b], M * page_size + 1);
    const PageTables tables{page_size, page_table, page_table_stride, context, indptr};
    PagePlanner& planner = thread_owned<PagePlanner>();
    planner.run(tables, B);
    planner.items.write({max_items, max_spans, items, item_indptr, spans, needed},
                        [&](const WorkItem& item, int32_t* to, int64_t room) { return write_spans(tables, item, to, room); });
  });
}
