// One kernel launch, as the stand-in driver hands it to a kernel that the stand-in compiler built.
#pragma once
#include <cstddef>

struct Launch {
    unsigned grid[3];          // blocks
    unsigned block[3];         // threads of a block
    void** arguments;          // one pointer per kernel parameter, as cuLaunchKernel takes them
    char* shared;              // shared memory of the block that is running
    unsigned shared_bytes;
    char* stacks;              // memory for the threads' stacks, `threads of a block * stack_bytes`
    size_t stack_bytes;
    char problem[512];         // what went wrong, empty if nothing did
};

// Every compiled kernel exports `int launch(Launch*)`, 0 for success.
using LaunchFunction = int (*)(Launch*);
