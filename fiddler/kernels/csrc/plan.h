// Plans a message: groups its rows by expert, and cuts the work into tasks that threads take as they finish.
#pragma once

#include <atomic>
#include <vector>

#include "job.h"

namespace fiddler {

// Rows by expert: those of expert experts[i] are assignments [starts[i], starts[i + 1]).
struct Grouping {
  std::vector<int32_t> experts;
  std::vector<int64_t> starts;
  std::vector<int32_t> rows;
  std::vector<float> weights;

  // False if an expert id is out of range.
  bool group(const fiddler_message& message, int64_t num_experts);

 private:
  std::vector<int64_t> next_;
};

// How an expert's rows are cut into tiles; the caller allocates their memory. A segment of the inputs of 256 rows takes
// half of the second-level cache of the first CPUs with tiles.
RowTiles tiles_of(int64_t rows, int64_t inputs);

// Outputs [begin, end) of one expert's projections, or of all experts' if expert is -1.
struct Task {
  int64_t expert;
  int64_t begin;
  int64_t end;
};

// Tasks by node: its threads take its own first, and then help the other nodes.
class TaskList {
 public:
  void clear(int num_nodes);
  void add(int node, Task task);
  void close();  // no more are added

  // Calls body(task) until none is left.
  template <class Body>
  void take(int node, Body body) {
    for (int i = 0; i < num_nodes_; ++i) {
      const int from = (node + i) % num_nodes_;
      Queue& queue = queues_[static_cast<size_t>(from)];
      for (;;) {
        const int64_t index = queue.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= queue.end) break;
        body(tasks_[static_cast<size_t>(index)]);
      }
    }
  }

  int64_t size() const { return static_cast<int64_t>(tasks_.size()); }

 private:
  struct alignas(64) Queue {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
    Queue() = default;
    Queue(const Queue&) : Queue() {}
  };
  int num_nodes_ = 0;
  std::vector<Task> tasks_;
  std::vector<Queue> queues_;
};

// Cut the projections of all experts that have rows. A node computes the part of each matrix that is in its memory.
void plan_inner(const Job& job, const Ops& ops, int num_threads, int num_nodes, TaskList& tasks);
void plan_outer(const Job& job, const Ops& ops, int num_threads, int num_nodes, TaskList& tasks);

// Whether the whole job is too small to be worth waking other threads.
bool is_tiny(const Job& job, const Ops& ops);

// The same of a job of which only plan_outer's part is computed.
bool is_tiny_outer(const Job& job, const Ops& ops);

// The first of `outputs` that a node computes: fiddler_node_begin.
int64_t node_begin(int64_t outputs, int node, int num_nodes);

}  // namespace fiddler
