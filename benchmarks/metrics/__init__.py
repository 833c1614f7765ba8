"""`python -m benchmarks.metrics`: what counting costs a decode step, while both services serve.

metrics.MODEL.step                 seconds of the model for one decode step of one sequence, by fiddler_step_seconds
metrics.MODEL.SERVICE.counting     CPU seconds for each such step that the service spent in counting, at most
metrics.MODEL.SERVICE.calls        calls for each step that count something
metrics.MODEL.counting_over_step   both services' seconds of counting over the step's, which shall be below 0.01
metrics.MODEL.SERVICE.scrape       seconds until /metrics has answered, which is when numbers are put into words

MODEL is demo (models/demo, whose steps are far shorter than those of a model that is larger than a GPU) or
mixtral_2_layers (two layers of Mixtral-8x7B's shape; see benchmarks.end_to_end, whose --checkpoint it shares). The
services are real ones in which the functions that count have a clock around them (timed_service.py). The clock's own
time is in what it tells, and a function that counts by way of another is told twice, so that all is an upper bound;
what is not in it are single additions between two lines of other code. The CPU expert service counts once its answer is
on its way, when nobody waits for it; here it is added all the same.
"""
