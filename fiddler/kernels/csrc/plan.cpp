#include "plan.h"

#include <algorithm>

namespace fiddler {

namespace {

constexpr int64_t shares_per_thread = 2;        // of the work that is left: large tasks first, and the last ones end together
constexpr int64_t panel_tasks_per_thread = 12;  // all alike, and not many, because each reads all hidden rows again
constexpr int64_t column_tasks_per_thread = 2;
constexpr double min_task_cost = 48.0 * 1024;   // in weights read; below, taking a task costs as much as computing it
constexpr double tiny_job_cost = 192.0 * 1024;  // in weights read; about what waking another thread costs

double cost_per_weight(const Ops& ops, int64_t rows) {
  return std::max(1.0, static_cast<double>(rows) / ops.rows_per_read);
}

// Outputs of one task: whole panels if there are many rows; many outputs if weights are transposed, because the outputs
// of one input are adjacent and those of the next far away; never more than Scratch holds.
int64_t outputs_per_task(double cost_per_output, double cost, bool panels, bool columns) {
  const auto outputs = static_cast<int64_t>(std::max(cost, min_task_cost) / cost_per_output);
  const int64_t multiple = panels || columns ? panel_outputs : 4;
  return std::clamp(outputs / multiple * multiple, multiple, columns ? max_column_outputs : max_chunk_outputs);
}

// Cuts the work of one node, in the order in which its threads take it.
class Cutter {
 public:
  Cutter(TaskList& tasks, int node, int num_nodes, int num_threads, double total_cost)
      : tasks_(tasks), node_(node), num_nodes_(num_nodes), num_threads_(num_threads), total_(total_cost),
        left_(total_cost) {}

  void cut(int64_t expert, int64_t outputs, double cost_per_output, bool panels, bool columns) {
    const int64_t end = node_begin(outputs, node_ + 1, num_nodes_);
    for (int64_t begin = node_begin(outputs, node_, num_nodes_); begin < end;) {
      // a row of few inputs ends before memory has begun to deliver, and so does a task of few rows
      const double share = columns  ? total_ / static_cast<double>(num_threads_ * column_tasks_per_thread)
                           : panels ? total_ / static_cast<double>(num_threads_ * panel_tasks_per_thread)
                                    : left_ / static_cast<double>(num_threads_ * shares_per_thread);
      const int64_t next = std::min(begin + outputs_per_task(cost_per_output, share, panels, columns), end);
      tasks_.add(node_, {expert, begin, next});
      left_ -= static_cast<double>((next - begin) * num_nodes_) * cost_per_output;
      begin = next;
    }
  }

 private:
  TaskList& tasks_;
  const int node_, num_nodes_, num_threads_;
  const double total_;  // of all nodes
  double left_;         // the same, if the others have as much left as this one
};

double inner_cost_per_output(const Job& job, const Ops& ops, int64_t rows) {
  return static_cast<double>(job.hidden_size * (1 + job.gated + job.has_factor)) * cost_per_weight(ops, rows);
}

double inner_cost(const Job& job, const Ops& ops) {
  double total = 0;
  for (int64_t e = 0; e < job.num_experts; ++e) {
    total += inner_cost_per_output(job, ops, job.experts[e].count) * static_cast<double>(job.intermediate_size);
  }
  return total;
}

double outer_cost_per_output(const Job& job, const Ops& ops) {
  double cost = 0;
  for (int64_t e = 0; e < job.num_experts; ++e) {
    cost += static_cast<double>(job.intermediate_size) * cost_per_weight(ops, job.experts[e].count);
  }
  return cost;
}

}  // namespace

int64_t node_begin(int64_t outputs, int node, int num_nodes) {
  if (node == num_nodes) return outputs;
  return outputs * node / num_nodes / panel_outputs * panel_outputs;
}

bool Grouping::group(const fiddler_message& message, int64_t num_experts) {
  const int64_t count = message.rows * message.experts_per_row;
  next_.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t expert = message.expert_ids[i];
    if (expert < -1 || expert >= num_experts) return false;
    if (expert >= 0) ++next_[static_cast<size_t>(expert)];
  }
  experts.clear();
  starts.assign(1, 0);
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t rows_of_expert = next_[static_cast<size_t>(e)];
    next_[static_cast<size_t>(e)] = starts.back();
    if (rows_of_expert == 0) continue;
    experts.push_back(static_cast<int32_t>(e));
    starts.push_back(starts.back() + rows_of_expert);
  }
  rows.resize(static_cast<size_t>(starts.back()));
  weights.resize(rows.size());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t expert = message.expert_ids[i];
    if (expert < 0) continue;
    const auto position = static_cast<size_t>(next_[static_cast<size_t>(expert)]++);
    rows[position] = static_cast<int32_t>(i / message.experts_per_row);
    weights[position] = message.routing_weights[i];
  }
  return true;
}

RowTiles tiles_of(int64_t rows, int64_t inputs) {
  constexpr int64_t cached_bytes = 1 << 20, multiple = Scratch::kept_bytes / (2 * RowTiles::bytes);
  const int64_t num_blocks = (rows + RowTiles::rows - 1) / RowTiles::rows;
  const int64_t together = std::min(num_blocks, max_block_rows / RowTiles::rows);
  const int64_t steps = cached_bytes / (together * RowTiles::bytes) / multiple * multiple;
  return {nullptr, num_blocks, (inputs + RowTiles::inputs - 1) / RowTiles::inputs, steps};
}

void TaskList::clear(int num_nodes) {
  num_nodes_ = num_nodes;
  tasks_.clear();
  queues_.resize(static_cast<size_t>(num_nodes));
  for (Queue& queue : queues_) {
    queue.next.store(0, std::memory_order_relaxed);
    queue.end = 0;
  }
}

void TaskList::add(int node, Task task) {
  tasks_.push_back(task);
  ++queues_[static_cast<size_t>(node)].end;
}

void TaskList::close() {
  int64_t begin = 0;
  for (Queue& queue : queues_) {
    queue.next.store(begin, std::memory_order_relaxed);
    begin = queue.end += begin;
  }
}

void plan_inner(const Job& job, const Ops& ops, int num_threads, int num_nodes, TaskList& tasks) {
  tasks.clear(num_nodes);
  for (int node = 0; node < num_nodes; ++node) {
    Cutter cutter(tasks, node, num_nodes, num_threads, inner_cost(job, ops));
    for (int64_t e = 0; e < job.num_experts; ++e) {
      const int64_t rows = job.experts[e].count;
      cutter.cut(e, job.intermediate_size, inner_cost_per_output(job, ops, rows), rows >= ops.min_panel_rows,
                 has_columns(job, job.experts[e]));
    }
  }
  tasks.close();
}

void plan_outer(const Job& job, const Ops& ops, int num_threads, int num_nodes, TaskList& tasks) {
  tasks.clear(num_nodes);
  bool panels = false;
  for (int64_t e = 0; e < job.num_experts; ++e) panels |= job.experts[e].count >= ops.min_panel_rows;
  const double cost = std::max(outer_cost_per_output(job, ops), 1.0);
  const bool columns = job.num_experts > 0 && job.experts[0].down.is_transposed();
  for (int node = 0; node < num_nodes; ++node) {
    Cutter cutter(tasks, node, num_nodes, num_threads, cost * static_cast<double>(job.hidden_size));
    cutter.cut(-1, job.hidden_size, cost, panels, columns);
  }
  tasks.close();
}

bool is_tiny(const Job& job, const Ops& ops) { return inner_cost(job, ops) * 1.5 < tiny_job_cost; }

bool is_tiny_outer(const Job& job, const Ops& ops) {
  return outer_cost_per_output(job, ops) * static_cast<double>(job.hidden_size) < tiny_job_cost;
}

}  // namespace fiddler

extern "C" int64_t fiddler_node_begin(int64_t outputs, int32_t node, int32_t num_nodes) {
  return fiddler::node_begin(outputs, node, num_nodes);
}
