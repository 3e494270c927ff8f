"""ONNX files, written node by node: what transformers.js and onnxruntime look for in a folder.

`folder` writes it, `encoder` one of a vision encoder alone; `graph` builds one graph, `layers` the layers of
`core` in it, `language` and `sight` the graphs of a model's parts; `numbers` has the forms that matrices are
kept in, one line each in `FORMS`.

The operators are those of opset 17 alone, but for `com.microsoft.MatMulNBits` where matrices have four bits.
What a graph computes is what our own layers compute, in their order, so that rounding is all that differs.
"""
