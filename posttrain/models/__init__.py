"""Networks: policies, frozen references, value models and the actor-critic module that trains them together."""
