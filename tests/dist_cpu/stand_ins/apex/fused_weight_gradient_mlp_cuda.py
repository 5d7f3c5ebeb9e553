from apex import CALLS


def wgrad_gemm_accum_fp32(input, grad_output, main_grad):
    CALLS["weight_gradients"] += 1
    main_grad.addmm_(grad_output.t().to(main_grad.dtype), input.to(main_grad.dtype))
