"""The batched engine: requests in, log-probabilities or generated tokens out.

For long lists of requests `engine`; for requests that come at any time and are answered word by word
`scheduler`, whose docstring says what it guarantees. Both ask the same model, and neither knows of the other.

A `requests.Request` is a prompt of tokens, the images in it, and what is wanted of it: `Letters`, `Texts` or
`Generated`, each with a `tag` of the client's own. An `engine.Engine` over a `scorer.Scorer` answers a stream
of them by `requests.Answer`s. `engine.answers` does so for a few at once.

Who may call: whoever has a model and prompts; today the evaluation and `api.LoadedVlm.score_choices`. Nothing
in here knows of questions, protocols, rows or files of results; what a message calls a request or a setting
is the client's (`Request.name`, `EngineConfig.section`). Imports go down to models, generation, `hub.tensors`
and the ground.

What is guaranteed:

- **Batch of N = batch of 1.** An answer depends on its request alone, up to the order of floating-point sums:
  not on its neighbours, their order, `EngineConfig`, what pools held, nor on whether features came from disk.
  It is what the plain model gives for the whole sequence: log-probabilities over the whole vocabulary in
  float32, of texts summed over their tokens; greedy tokens, or such as are drawn by the request's own seed,
  cut before their stop token, at their limit or where the context ends.
- **Order.** Every want is answered exactly once. Answers come in lists as batches land, not in the order of
  the requests, and a long generated answer after others of its own request: clients go by `tag`. With the
  same requests in the same order, batches are the same ones.
- **Shared once.** Images with equal keys are encoded once, and prefixes of equal tokens on equal images read
  once, for as long as they stay in their pools; a request's text is read once for all its wants, and again
  only where a generated answer goes on past a pause (`engine.PAUSES`).
- **Memory.** On the device: `pool_tiles` encoded tiles (never fewer than one batch needs), `pool_prefixes`
  prefixes of each bucket of lengths (by default two batches), and two batches at most, one in flight and one
  that is made. On the host: the requests that wait, without pictures once these are placed, at most
  `engine.PATIENCE` batches of each shape. A request that shares its shape with few may wait for the end of
  the stream. Shapes are buckets, so programs are few however many requests come.
- **Nothing silently wrong.** Logits that are not finite, a request that fits no bucket, tiles that are not as
  many as the prompt says and prompts that are not as the model reads them raise, by the name of the request.

An engine belongs to one thread, and one `run` at a time goes to its end. `Pictures`, `FeatureStore.get` and
`Engine.has_image` are for the threads that prepare requests.
"""
