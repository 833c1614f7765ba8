"""`python -m benchmarks.serving`: what serving several sequences at once costs, and what callers see of it.

serving.MODEL.CASE.experts               a decode step's seconds from sending its rows until their sums are there
serving.MODEL.CASE.kernel                the part of it in which the CPU expert service computes; the rest is the way
serving.MODEL.CASE.floor                 the time to read each distinct expert that the step touches once
serving.MODEL.CASE.experts_over_floor    their ratio, step by step
serving.MODEL.CASE.dense                 the rest of the model's forward: attention, routers, norms, head, by PyTorch
serving.MODEL.CASE.overhead              a step without the model's forward: scheduling, sampling, beams, events
serving.MODEL.CASE.overhead_over_step    that as a part of the step
serving.MODEL.streams8.over_stream1      tokens per second of eight streams over those of one, through the client
serving.MODEL.short_prompt.chunks        chunks of prompts computed until a short one has its first token that comes
                                         while a long one is computed
serving.MODEL.short_prompt_grown.chunks  the same where the long one's chunk is as long as the prompt, being alone
serving.MODEL.long_prompt.CHUNKS         tokens per second of a long prompt that is alone, chunked or with a chunk grown
serving.MODEL.loadN.time_to_first_token  seconds, as N callers at once see them
serving.MODEL.loadN.inter_token          seconds between two tokens of a stream

CASE is stream1, streams8 (greedy), sampled8 (temperature and top-p), beam4 or beam16. MODEL is demo (models/demo) or
mixtral_2_layers: two layers of Mixtral-8x7B's shape with random weights, written to --checkpoint (kept there for the
next run) or to a temporary directory. The bandwidth of the floor is what as many threads as the CPU expert service's
take to read the same weights and compute nothing, measured before and after the steps of each case and round. Where
single steps are looked into, the engine runs in this process and the experts in another; what callers see is measured
through a pair of services. All is bfloat16 on the CPU.

--models and --parts choose what is run, so that --append puts a long run together from short ones; --tiny is for trying
out the benchmark itself.
"""
