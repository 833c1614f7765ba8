"""`python -m benchmarks.metrics`: what counting costs a decode step.

metrics.MODEL.step                 seconds between two tokens of one sequence, as the caller sees them come
metrics.MODEL.step_uncounted       the same while neither service counts
metrics.MODEL.counting_over_step   what counting adds, over the step without it, round by round; it shall be below 0.01
metrics.MODEL.SERVICE.scrape       seconds until /metrics has answered, which is when numbers are put into words

MODEL is demo (models/demo, whose steps are far shorter than those of a model that is larger than a GPU) or
mixtral_2_layers (two layers of Mixtral-8x7B's shape; see benchmarks.end_to_end, whose --checkpoint it shares). Both
services are real ones whose functions that count can be switched off (switched_service.py); what is not switched are
single additions between two lines of other code. In every round the same tokens are generated with and without.
"""
