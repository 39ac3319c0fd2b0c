"""Times Pilotlight's solve beside GLOP on the MPS that it writes, and compares the objectives."""
import subprocess
import sys
import time

from ortools.linear_solver.python import model_builder

SEEDS = range(int(sys.argv[2]) if len(sys.argv) > 2 else 3)


def main() -> None:
    ratios, worst = [], 0.0
    print("seed     columns      rows   ours (s)   GLOP (s)   ratio   objective difference")
    for seed in SEEDS:
        path = f"target/one_period_{seed}.mps"
        ours = subprocess.run([sys.argv[1], str(seed), path], check=True, capture_output=True, text=True)
        objective, seconds, columns, rows = ours.stdout.split()
        model = model_builder.Model()
        if not model.import_from_mps_file(path):
            sys.exit(f"{path}: GLOP's reader refuses it")
        solver = model_builder.Solver("glop")
        start = time.perf_counter()
        status = solver.solve(model)
        glop_s = time.perf_counter() - start
        if status != model_builder.SolveStatus.OPTIMAL:
            sys.exit(f"seed {seed}: GLOP ended with {status}")
        difference = abs(solver.objective_value - float(objective)) / max(1.0, abs(float(objective)))
        ratio = glop_s / float(seconds)
        ratios.append(ratio)
        worst = max(worst, difference)
        print(f"{seed:>4} {int(columns):>11,} {int(rows):>9,} {float(seconds):>10.3f} {glop_s:>10.2f} {ratio:>7.0f}   {difference:.1e}")
    ratios.sort()
    print(f"GLOP takes {ratios[0]:.0f} to {ratios[-1]:.0f} times as long; objectives differ by at most {worst:.1e}")
    if worst > 1e-6:
        sys.exit("the objectives differ by more than 1e-6")


main()
