"""`python -m benchmarks.end_to_end`: tokens per second of a real pair beside transformers, on the same weights.

end_to_end.MODEL.decode.SYSTEM            tokens per second after the first, as the caller sees them come
end_to_end.MODEL.prefill_512.SYSTEM       prompt tokens per second until the first token has come
end_to_end.MODEL.CASE.over_transformers_EXPERTS  the pair over transformers, round by round

MODEL is demo (models/demo) or mixtral_2_layers: two layers of Mixtral-8x7B's shape with random weights, written to
--checkpoint (kept there for the next run) or to a temporary directory. The pair is two processes, spoken to by the
client over gRPC. transformers is a loop over the model's forward, greedy, with its own cache, in another process,
without transformers' generate around it; EXPERTS are its experts_implementation. All are bfloat16 on the CPU, and a
round goes through all in turn, while the others wait.
"""
