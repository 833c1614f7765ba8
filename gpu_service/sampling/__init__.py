"""From logits to tokens: parameters, rules, processors, sampler, beam search, log probabilities."""
