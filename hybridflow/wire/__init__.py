"""Streams over ZeroMQ: finished completions from the engines to the driver, and score requests to the reward workers.

    engine <--DEALER/ROUTER--> [ RewardStream in the driver: broker.py decides, broker_thread.py does the I/O ]
    worker <--DEALER/ROUTER-->

`messages.py` what is said, `codec.py` how it is written, `dispatcher.py` who scores what and `flow.py` how fast engines
may send (pure), `reward_stream.py` the driver's end, `completion_sender.py` the engine's, `worker_channel.py` the
worker's. `completion_receiver.py` takes completions where nobody scores them.
"""
