"""l_inf-distance nets: neurons that measure how far their input is from a point, y = max_i |x_i - w_i|.

Such a neuron is 1-Lipschitz in l_inf whatever its weights, so a whole network of them is certified by its margins
alone (arXiv 2102.05363, 2110.06850), or by pushing a box through it, which for these layers is exact in floating
point. Training goes through l_p distances, p from 8 upwards, because the maximum has almost no gradient.
"""
