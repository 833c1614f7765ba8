#include "pool.h"

#include <chrono>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace fiddler {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

namespace {

constexpr int checks_between_yields = 32;  // of a thread that has nothing to do: a microsecond or two
constexpr int checks_before_yielding = 4096;  // the thread that is waited for may have lost its CPU to another process

void pin_this_thread(int cpu) {
#ifdef __linux__
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // the container may have lost the CPU since it was listed; the thread then runs on any CPU
  (void)pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
  (void)cpu;
#endif
}

template <class Done>
void wait_awake(Done done) {
  for (int checks = 0; !done(); ++checks) {
    if (checks < checks_before_yielding) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

void Barrier::wait() {
  missing_.fetch_sub(1, std::memory_order_acq_rel);
  wait_awake([this] { return missing_.load(std::memory_order_acquire) == 0; });
}

}  // namespace fiddler

fiddler_pool::fiddler_pool(const int32_t* cpus, const int32_t* nodes, int count, int spin_microseconds)
    : nodes_(nodes, nodes + count),
      spin_microseconds_(spin_microseconds),
      workers_(new Worker[static_cast<size_t>(count)]) {
  for (int i = 0; i < count; ++i) {
    if (nodes[i] >= num_nodes_) num_nodes_ = nodes[i] + 1;
    if (cpus[i] < 0) continue;
    const auto cpu = static_cast<size_t>(cpus[i]);
    if (cpu >= index_by_cpu_.size()) index_by_cpu_.resize(cpu + 1, -1);
    index_by_cpu_[cpu] = i;
  }
  if (count == 1) return;
  try {
    for (int i = 0; i < count; ++i) workers_[i].thread = std::thread(&fiddler_pool::work, this, i, cpus[i]);
  } catch (...) {
    this->~fiddler_pool();
    throw;
  }
}

fiddler_pool::~fiddler_pool() {
  stop_.store(true);
  for (int i = 0; workers_ && i < size(); ++i) {
    if (!workers_[i].thread.joinable()) continue;
    workers_[i].ticket.fetch_add(1);
    workers_[i].ticket.notify_one();
    workers_[i].thread.join();
  }
}

void fiddler_pool::work(int index, int cpu) {
  fiddler::pin_this_thread(cpu);
  std::atomic<uint32_t>& ticket = workers_[index].ticket;
  for (uint32_t seen = 0;;) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_microseconds_);
    for (int checks = 1; ticket.load(std::memory_order_acquire) == seen; ++checks) {
      fiddler::relax();
      if (checks % fiddler::checks_between_yields != 0) continue;
      if (std::chrono::steady_clock::now() >= until) ticket.wait(seen, std::memory_order_acquire);
      // on one machine, two services compute in turn on the same CPUs: the other one's thread must not wait for this one
      std::this_thread::yield();
    }
    seen = ticket.load(std::memory_order_acquire);
    if (stop_.load()) return;
    call_(context_, index);
    remaining_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

int fiddler_pool::index_of_this_cpu() const {
#ifdef __linux__
  const int cpu = sched_getcpu();
  if (cpu >= 0 && static_cast<size_t>(cpu) < index_by_cpu_.size()) {
    const int index = index_by_cpu_[static_cast<size_t>(cpu)];
    if (index >= 0) return index;
  }
#endif
  return size() - 1;
}

void fiddler_pool::run_all(Call call, void* context) {
  if (size() == 1) return call(context, 0);
  const int self = index_of_this_cpu();
  call_ = call;
  context_ = context;
  remaining_.store(size() - 1, std::memory_order_relaxed);
  for (int i = 0; i < size(); ++i) {
    if (i == self) continue;
    workers_[i].ticket.fetch_add(1, std::memory_order_release);
    workers_[i].ticket.notify_one();
  }
  call(context, self);
  fiddler::wait_awake([this] { return remaining_.load(std::memory_order_acquire) == 0; });
}
