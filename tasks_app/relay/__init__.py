"""What moves the records when neither a submitter nor a worker does: each function does one batch and returns a count.

loop      the thread that calls the others, each in its time
due       publishes what is due, revokes what has expired
rescue    ends runs that were lost, and chords that were interrupted; deletes limits of no use
census    finds the messages that the broker has lost
refused   what becomes of messages that no worker can take, and of a purged queue
"""
