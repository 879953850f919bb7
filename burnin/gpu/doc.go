// Package gpu tests NVIDIA cards: are they there, does their memory keep what
// is written to it, do they compute right, and do they stay cool doing so. It
// is the only package that needs cgo, and smelt-gpu is the only program with
// it, so that a driver library that kills its process kills nothing else.
//
// Run is the supervisor. It touches no NVIDIA library itself: each card gets a
// worker process (Work) with a deadline, because
//
//   - go-nvml binds lazily: a call that the installed driver lacks ends the
//     process with "symbol lookup error" and exit code 127, not an error;
//   - a CUDA error is sticky: the context is lost for the rest of the process;
//   - a call on a card that fell off the bus may block in the kernel for ever.
//
// No CUDA toolkit is needed: kernels.ptx is text that the driver compiles. The
// image needs libcuda.so.1, libnvidia-ml.so.1, libnvidia-ptxjitcompiler.so.1
// and the nvidia-uvm module.
//
// # Checks and their limits
//
//	gpu-presence  every card of the inspection is on the bus and known to the
//	              driver under its own name, and no other one is
//	gpu-vram      share (0.9): part of the free VRAM that must be tested;
//	              moving inversions of a hashed address pattern, errors exact
//	gpu-compute   fma chains with a checksum known beforehand for each block;
//	              minEfficiency (0, off): against the fastest card of its model
//	both          marginCelsius (5): how far below its own slowdown threshold
//	              a card must stay; maxCelsius (83) when it tells no threshold
//
// # Simulation
//
// Subject.Sim chooses simulated libraries (simlib): the same code then runs
// through the same library calls, on cards that are not there. A library that
// exports the symbol smeltSimulated makes every result simulated, whatever was
// asked for; asking for a simulation and getting a real library is an error.
package gpu
