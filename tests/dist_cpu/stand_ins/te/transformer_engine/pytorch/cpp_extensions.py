from transformer_engine import CALLS


def general_gemm(A, B, workspace, out_dtype=None, accumulate=False, layout="TN", out=None, grad=False):
    """As until 2.9, with a workspace: B^T A for the layout NT."""
    CALLS["weight_gradients"] += 1
    assert layout == "NT" and accumulate and grad and out.dtype == out_dtype and workspace == "workspace"
    out.addmm_(B.t().to(out.dtype), A.to(out.dtype))
