from celery import shared_task


@shared_task(name="bench.noop")
def noop(*args):
    pass
