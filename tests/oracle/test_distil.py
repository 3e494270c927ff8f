"""Divergences of distillation against the formulas of TRL's GKDTrainer, written in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatialvlm.training.objectives.distil import divergence


def reference(student, teacher, beta, temperature):
  """`GKDTrainer.generalized_jsd_loss` (TRL 1.16) before its mean: by token, gradients by the student."""
  F = torch.nn.functional
  log_s = F.log_softmax(student / temperature, dim=-1)
  log_t = F.log_softmax(teacher / temperature, dim=-1)
  kl = lambda q, p: F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
  if beta == 0:
    return kl(log_s, log_t)
  if beta == 1:
    return kl(log_t, log_s)
  b = torch.tensor(beta, dtype=student.dtype)
  log_m = torch.logsumexp(torch.stack([log_s + torch.log1p(-b), log_t + torch.log(b)]), dim=0)
  return b * kl(log_m, log_t) + (1 - b) * kl(log_m, log_s)


@pytest.mark.parametrize("temperature", [0.9, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_as_trl(beta, temperature):
  rng = np.random.default_rng(0)
  student, teacher = (rng.normal(size=(3, 5, 41), scale=3).astype(np.float32) for _ in range(2))
  given = torch.tensor(student, requires_grad=True)
  wanted = reference(given, torch.tensor(teacher), beta, temperature)
  wanted.sum().backward()
  total = lambda s: divergence(s, jnp.asarray(teacher), beta, temperature)
  np.testing.assert_allclose(total(student), wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
  found = jax.grad(lambda s: total(s).sum())(jnp.asarray(student))
  np.testing.assert_allclose(found, given.grad.numpy(), rtol=1e-4, atol=1e-6)
