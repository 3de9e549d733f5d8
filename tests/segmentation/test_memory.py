"""Arrays that are used again, until they are given back."""

import weakref

from atlas_ray.segmentation import memory


def test_memory_is_used_again_once_nobody_holds_it_and_gone_once_given_back() -> None:
    memory.give_back()
    first = memory.empty(3, 5)
    where = first.data_ptr()
    view = first[1:]
    del first
    assert memory.empty(5, 3).data_ptr() != where  # somebody still looks at it
    del view
    assert memory.empty(15).data_ptr() == where
    (buffers,) = (free for size, free in memory._free.items() if size == 15)
    gone = [weakref.ref(buffer) for buffer in buffers]
    assert gone
    del buffers
    memory.give_back()
    assert [buffer() for buffer in gone] == [None] * len(gone)


def test_what_is_in_use_outlives_giving_back() -> None:
    held = memory.empty(4)
    held[:] = 7
    memory.give_back()
    memory.empty(4)[:] = 0
    assert held.tolist() == [7, 7, 7, 7]
