package alg

// CMAC is the primitive under KCV, for its vectors.
var CMAC = cmac
