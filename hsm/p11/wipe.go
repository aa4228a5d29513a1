package p11

// int trikey_wipes_c_heap(void);
import "C"

// WipesCHeap reports whether the C heap's blocks are wiped when they are freed:
// true on glibc.
func WipesCHeap() bool { return C.trikey_wipes_c_heap() == 1 }
