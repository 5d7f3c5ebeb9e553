"""Streams over ZeroMQ: finished completions from the engines to the driver, and score requests to the reward workers.

    engine --PUSH--> PULL [ RewardStream in the driver: dispatch.py decides, reward_stream.py does the I/O ]
    worker <--DEALER/ROUTER-->

`messages.py` what is said, `codec.py` how it is written, `dispatch.py` who scores what (pure), `reward_stream.py` the
broker, `completion_sender.py` the engine's end, `worker_channel.py` the worker's end.
"""
