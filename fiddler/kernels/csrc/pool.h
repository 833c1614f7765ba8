// Pinned threads that spin for a while before they sleep. The calling thread takes the place of the worker of the CPU
// that it is on, so that neither has to move.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

struct fiddler_pool {
 public:
  fiddler_pool(const int32_t* cpus, const int32_t* nodes, int count, int spin_microseconds);
  ~fiddler_pool();
  fiddler_pool(const fiddler_pool&) = delete;
  fiddler_pool& operator=(const fiddler_pool&) = delete;

  int size() const { return static_cast<int>(nodes_.size()); }
  int num_nodes() const { return num_nodes_; }
  int node(int index) const { return nodes_[static_cast<size_t>(index)]; }

  // Admits one caller at a time; false if there is one already.
  bool enter() { return !busy_.exchange(true, std::memory_order_acquire); }
  void leave() { busy_.store(false, std::memory_order_release); }

  // Held by whoever computes messages, where several threads do: they wait for one another here.
  std::mutex turn;

  // Calls function(index) once on each thread, 0 <= index < size(), and returns when all have.
  template <class Function>
  void run(Function function) {
    run_all([](void* context, int index) { (*static_cast<Function*>(context))(index); }, &function);
  }

 private:
  using Call = void (*)(void* context, int index);
  struct alignas(64) Worker {
    std::atomic<uint32_t> ticket{0};
    std::thread thread;
  };

  void run_all(Call call, void* context);
  void work(int index, int cpu);
  int index_of_this_cpu() const;

  std::vector<int> nodes_;
  std::vector<int> index_by_cpu_;
  int num_nodes_ = 1;
  int spin_microseconds_;
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  Call call_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<int> remaining_{0};
  std::unique_ptr<Worker[]> workers_;
};

namespace fiddler {

void relax();  // tells the CPU that this is a waiting loop

// Blocks each thread until all have arrived.
class Barrier {
 public:
  explicit Barrier(int count) : missing_(count) {}
  void wait();

 private:
  alignas(64) std::atomic<int> missing_;
};

}  // namespace fiddler
