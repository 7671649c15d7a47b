"""``sketchlayers bench``: sketched layers against PyTorch's own, layer by layer, on this machine.

All contenders are timed in one process, run by run in turn, so that a busy machine slows each of
them; a row gives the median of the ratios with its quartiles. The dense side is the faster of
PyTorch's layer in NCHW and in channels_last. Peak memory is that of one call: the parameters, the
input, and the largest sum of what PyTorch's allocator held during the call.

==============  ==================================================================
``cases``       the layers
``timing``      steps, quartiles
``memory``      peaks of a call
``bound``       the machine's peaks and the least work of a layer
``figures``     speeds to reach
``table``       rows: measured, printed
``plot``        the picture
``tune``        the planner's constants
==============  ==================================================================
"""
